from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from carrara_models.contracts import Kind
from carrara_models.errors import CheckpointError, NumericalError
from carrara_models.parts import Texts


def encode_with_pipeline(folder: Path, prompt: str, negative: str) -> tuple[Any, Any]:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        return pipeline.encode_prompt(prompt, torch.device("cpu"), 1, True, negative)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("use_attention_mask", [False, True])
def test_embeddings_equal_the_pipelines(
    sd2: Path, load: Callable[..., Any], use_attention_mask: bool
) -> None:
    edit_config(sd2, use_attention_mask=use_attention_mask)
    text_encoder = load(sd2, "text-encoder")
    expected = encode_with_pipeline(sd2, "a red circle", "blue")
    halves = Texts("a red circle", negative=True, negative_prompt="blue").halves
    for half, pipelines in zip(halves, expected, strict=True):
        (tensor,) = text_encoder.encode([half])[0].tensors.values()
        torch.testing.assert_close(tensor, pipelines, rtol=0, atol=0)


def test_the_attention_mask_counts_where_the_config_says_so(
    sd2: Path, load: Callable[..., Any]
) -> None:
    plain = load(sd2, "text-encoder").encode([Texts("a red circle")])[0]
    edit_config(sd2, use_attention_mask=True)
    masked = load(sd2, "text-encoder").encode([Texts("a red circle")])[0]
    assert not torch.equal(plain.tensors["prompt_embeds"], masked.tensors["prompt_embeds"])


def test_the_contract_tells_what_is_made(sd1: Path, load: Callable[..., Any]) -> None:
    text_encoder = load(sd1, "text-encoder")
    (contract,) = text_encoder.produces
    assert contract.kind is Kind.CONDITIONING
    assert contract.space == text_encoder.components[1].fingerprint
    halves = Texts("a circle", negative=True).halves
    for spec, half in zip(contract.tensors, halves, strict=True):
        encoded = text_encoder.encode([half])[0]
        assert tuple(encoded.tensors[spec.name].shape) == spec.shape


@pytest.mark.parametrize("words", [75, 76, 80])
def test_a_prompt_that_is_too_long_is_cut_and_the_words_are_named(
    sd1: Path, load: Callable[..., Any], words: int
) -> None:
    encoded = load(sd1, "text-encoder").encode([Texts("red " * (words - 1) + "blue")])[0]
    # 77 tokens, two of which are the marks of start and end, leave room for 75 words.
    expected = {75: {}, 76: {"prompt": "blue"}, 80: {"prompt": "red red red red blue"}}
    assert {k: v.strip() for k, v in encoded.truncated.items()} == expected[words]


def test_a_word_of_textual_inversion_becomes_its_vectors(
    sd1: Path, load: Callable[..., Any]
) -> None:
    """The pipeline writes `<toy>` out as `<toy> <toy>_1`, and so do we."""
    tokenizer = CLIPTokenizer.from_pretrained(sd1 / "tokenizer")
    tokenizer.add_tokens(["<toy>", "<toy>_1"])
    tokenizer.save_pretrained(sd1 / "tokenizer")
    model = CLIPTextModel.from_pretrained(sd1 / "text_encoder")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(sd1 / "text_encoder")

    encoded = load(sd1, "text-encoder").encode([Texts("a <toy>")])[0]
    expected, _ = encode_with_pipeline(sd1, "a <toy>", "")
    torch.testing.assert_close(encoded.tensors["prompt_embeds"], expected, rtol=0, atol=0)


def test_threads_may_share_it(sd1: Path, load: Callable[..., Any]) -> None:
    text_encoder = load(sd1, "text-encoder")
    texts = [f"{'red ' * (i % 90)} circle" for i in range(60)]
    alone = [text_encoder.encode([Texts(text)])[0] for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: text_encoder.encode([Texts(text)])[0], texts))
    for first, second in zip(alone, together, strict=True):
        assert torch.equal(first.tensors["prompt_embeds"], second.tensors["prompt_embeds"])
        assert first.truncated == second.truncated


def test_not_a_number_is_an_error_and_not_an_embedding(sd1: Path, load: Callable[..., Any]) -> None:
    text_encoder = load(sd1, "text-encoder")
    next(text_encoder.text_encoder.parameters()).data.fill_(torch.nan)
    (problem,) = text_encoder.encode([Texts("a circle")])
    assert isinstance(problem, NumericalError)
    assert "prompt_embeds" in str(problem)


def test_a_tokenizer_of_another_text_encoder_is_refused(
    sd1: Path, load: Callable[..., Any]
) -> None:
    config = sd1 / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 100}))
    with pytest.raises(CheckpointError, match="makes up to 100 tokens; text_encoder takes 77"):
        load(sd1, "text-encoder")


def test_skipped_layers_leave_the_norm_on_what_is_read(sd2: Path, load: Callable[..., Any]) -> None:
    """diffusers' own pipeline fails with this transformers, so that the layers are taken off."""
    text_encoder = load(sd2, "text-encoder")
    skipped, negative = (
        text_encoder.encode([texts])[0]
        for texts in Texts("a red circle", negative=True, clip_skip=1).halves
    )
    layers = text_encoder.text_encoder.encoder.layers
    last = layers.pop(-1)
    shallow = text_encoder.encode([Texts("a red circle")])[0]
    layers.append(last)
    assert torch.equal(skipped.tensors["prompt_embeds"], shallow.tensors["prompt_embeds"])
    whole = text_encoder.encode([Texts(None, negative=True)])[0]
    name = "negative_prompt_embeds"
    assert torch.equal(negative.tensors[name], whole.tensors[name]), "skipped of the prompt alone"
