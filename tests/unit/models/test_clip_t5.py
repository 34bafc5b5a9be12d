from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from carrara_models.errors import BadFieldError, NumericalError
from carrara_models.parts import Texts
from families import flux


@pytest.mark.parametrize(
    ("texts", "cut"),
    [
        (Texts("red blue", max_sequence_length=3), {}),
        (Texts("red blue circle", max_sequence_length=3), {"prompt": "circle"}),
        (Texts("red", prompt_2="red blue circle", max_sequence_length=3), {"prompt_2": "circle"}),
        (Texts("red " * 75 + "blue", prompt_2="red"), {"prompt": "blue"}),
        # T5 cuts more of it than CLIP does.
        (Texts("red " * 75 + "blue", max_sequence_length=75), {"prompt": "red blue"}),
    ],
)
def test_words_that_do_not_fit_are_named_by_the_field_that_says_them(
    load: Callable[..., Any], texts: Texts, cut: dict[str, str]
) -> None:
    encoded = load(flux.CASE.folders[0], "text-encoder").encode([texts])[0]
    assert {field: words.strip() for field, words in encoded.truncated.items()} == cut


def test_the_length_is_the_embeddings_length(load: Callable[..., Any]) -> None:
    encoder = load(flux.CASE.folders[0], "text-encoder")
    for length, tokens in ((7, 7), (None, 512)):
        encoded = encoder.encode([Texts("red", max_sequence_length=length)])[0]
        assert encoded.tensors["prompt_embeds"].shape[1] == tokens
    for length in (0, 513):
        with pytest.raises(BadFieldError, match="1 to 512"):
            encoder.encode([Texts("red", max_sequence_length=length)])


def test_not_a_number_is_an_error_and_not_an_embedding(load: Callable[..., Any]) -> None:
    encoder = load(flux.CASE.folders[0], "text-encoder")
    next(encoder.pipeline.text_encoder.parameters()).data.fill_(torch.nan)
    (problem,) = encoder.encode([Texts("red")])
    assert isinstance(problem, NumericalError)
    assert "pooled_prompt_embeds" in str(problem)
