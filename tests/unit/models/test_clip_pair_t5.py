from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from carrara_models.checkpoints import open_checkpoint
from carrara_models.errors import BadFieldError, CheckpointError, NumericalError
from carrara_models.parts import Texts
from carrara_models.pruning import prune
from families import sd3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd3.CASE.folders[0], tmp_path / "sd3"))


@pytest.mark.parametrize(
    ("texts", "cut"),
    [
        (Texts("red " * 75, max_sequence_length=256), {}),
        (Texts("red " * 75 + "blue", max_sequence_length=256), {"prompt": "blue"}),
        (Texts("red blue circle", max_sequence_length=3), {"prompt": "circle"}),
        (Texts("red", prompt_3="red blue circle", max_sequence_length=3), {"prompt_3": "circle"}),
        (
            Texts(None, negative=True, negative_prompt_2="red " * 75 + "blue square"),
            {"negative_prompt_2": "blue square"},
        ),
    ],
)
def test_words_that_do_not_fit_are_named_by_the_field_that_says_them(
    load: Callable[..., Any], texts: Texts, cut: dict[str, str]
) -> None:
    encoded = load(sd3.CASE.folders[0], "text-encoder").encode([texts])[0]
    assert {field: words.strip() for field, words in encoded.truncated.items()} == cut


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [("max_sequence_length", 513, "1 to 512"), ("clip_skip", 2, "0 to 1")],
)
def test_an_option_out_of_range_is_refused_with_the_range(
    load: Callable[..., Any], field: str, value: int, allowed: str
) -> None:
    with pytest.raises(BadFieldError) as refusal:
        load(sd3.CASE.folders[0], "text-encoder").encode([Texts("red", **{field: value})])
    assert (refusal.value.field, refusal.value.allowed) == (field, allowed)


def test_zeros_stand_where_t5_is_left_out(load: Callable[..., Any]) -> None:
    encoder = load(sd3.WITHOUT_T5.folders[0], "text-encoder")
    embeds = encoder.encode([Texts("red", max_sequence_length=5)])[0].tensors["prompt_embeds"]
    assert tuple(embeds.shape) == (1, 77 + 5, sd3.T5_WIDTH)
    assert not embeds[:, 77:].any()
    assert embeds[:, :77, : 32 + 48].all()


def test_without_t5_and_the_transformers_config_the_width_is_not_guessed(
    load: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(sd3.WITHOUT_T5.folders[0], stage="text-encoder")
    folder = prune(checkpoint, output=tmp_path / "pruned")
    assert not checkpoint.has("text_encoder_3")
    assert [file.name for file in (folder / "transformer").iterdir()] == ["config.json"]
    load(folder, "text-encoder")
    (folder / "transformer" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no text_encoder_3.*transformer/config\.json"):
        load(folder, "text-encoder")


def test_a_t5_without_its_tokenizer_is_refused(load: Callable[..., Any], folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"tokenizer_3": [None, None]}))
    with pytest.raises(CheckpointError, match="text_encoder_3 without its counterpart"):
        load(folder, "text-encoder")


def test_not_a_number_is_an_error_and_not_an_embedding(load: Callable[..., Any]) -> None:
    encoder = load(sd3.CASE.folders[0], "text-encoder")
    next(encoder.pipeline.text_encoder_3.parameters()).data.fill_(torch.nan)
    (problem,) = encoder.encode([Texts(None, negative=True)])
    assert isinstance(problem, NumericalError)
    assert "negative_prompt_embeds" in str(problem)
