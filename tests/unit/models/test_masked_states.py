from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from diffusers import SanaPipeline

from carrara_models.errors import BadFieldError, NumericalError
from carrara_models.parts import Texts
from families import pixart_sigma, sana

PIXART, SANA = pixart_sigma.CASE, sana.CASE


def test_the_mask_tells_real_tokens_from_padding(load: Callable[..., Any]) -> None:
    encoder = load(PIXART.folders[0], "text-encoder")
    encoded = encoder.encode([Texts("red circle", max_sequence_length=6)])[0]
    mask = encoded.tensors["prompt_attention_mask"]
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0]]  # two words and the mark of the end
    assert tuple(encoded.tensors["prompt_embeds"].shape) == (1, 6, pixart_sigma.T5_WIDTH)
    negative = encoder.encode([Texts(None, negative=True, max_sequence_length=6)])[0]
    assert negative.tensors["negative_prompt_attention_mask"].tolist() == [[1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("case", "texts", "cut"),
    [
        (PIXART, Texts("Red blue circle", max_sequence_length=4), {}),
        (PIXART, Texts("Red blue Circle", max_sequence_length=3), {"prompt": "circle"}),
        (
            PIXART,
            Texts(None, negative=True, negative_prompt="red blue", max_sequence_length=2),
            {"negative_prompt": "blue"},
        ),
        (SANA, Texts("red", max_sequence_length=16), {}),
        (
            SANA,
            Texts("red" * 4 + "blue", max_sequence_length=5, complex_human_instruction=""),
            {"prompt": "blue"},
        ),
    ],
)
def test_words_that_do_not_fit_are_named(
    load: Callable[..., Any], case: Any, texts: Texts, cut: dict[str, str]
) -> None:
    encoded = load(case.folders[0], "text-encoder").encode([texts])[0]
    assert {field: words.strip() for field, words in encoded.truncated.items()} == cut


def test_the_instruction_is_for_the_positive_half_only(load: Callable[..., Any]) -> None:
    encoder = load(SANA.folders[0], "text-encoder")

    def encode(instruction: str | None, half: Texts) -> torch.Tensor:
        texts = Texts(
            half.prompt,
            negative=half.negative,
            negative_prompt=half.negative_prompt,
            max_sequence_length=16,
            complex_human_instruction=instruction,
        )
        (embeds, _) = encoder.encode([texts])[0].tensors.values()
        return embeds

    positive, negative = Texts("red"), Texts(None, negative=True, negative_prompt="red")
    assert torch.equal(encode("", positive), encode("", negative))
    assert torch.equal(encode("enhance: ", negative), encode("", negative))
    assert not torch.equal(encode("enhance: ", positive), encode("", positive))
    assert not torch.equal(encode(None, positive), encode("", positive))


def test_the_default_instruction_is_the_pipelines(load: Callable[..., Any]) -> None:
    encoder = load(SANA.folders[0], "text-encoder")
    assert encoder.instruction.startswith("Given a user prompt, generate an 'Enhanced prompt'")
    assert encoder.instruction.endswith("\nUser Prompt: ")
    assert "complex_human_instruction" in {argument.name for argument in encoder.arguments}
    pixart = load(PIXART.folders[0], "text-encoder")
    assert "complex_human_instruction" not in {argument.name for argument in pixart.arguments}


@pytest.mark.parametrize(("case", "cleans"), [(PIXART, 1), (SANA, 0)])
def test_captions_are_cleaned_by_default_where_the_pipeline_does(
    load: Callable[..., Any], case: Any, cleans: int
) -> None:
    encoder = load(case.folders[0], "text-encoder")
    (argument,) = [a for a in encoder.arguments if a.name == "clean_caption"]
    assert argument.default == cleans
    plain, dotted = (
        encoder.encode([Texts(prompt)])[0].tensors["prompt_embeds"]
        for prompt in ("a red circle", "a red circle 10.10.10.10")
    )
    assert torch.equal(plain, dotted) == bool(cleans)


@pytest.mark.parametrize("length", [0, 513])
def test_a_length_out_of_range_is_refused(load: Callable[..., Any], length: int) -> None:
    with pytest.raises(BadFieldError, match="1 to 512"):
        load(SANA.folders[0], "text-encoder").encode([Texts("red", max_sequence_length=length)])


def test_a_tokenizer_that_names_no_length_is_cut_by_the_pipeline(
    load: Callable[..., Any], tmp_path: Path
) -> None:
    """Gemma's published tokenizers have 10^30 for a length."""
    folder = Path(shutil.copytree(SANA.folders[0], tmp_path / "sana"))
    file = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"model_max_length": int(1e30)}
    file.write_text(json.dumps(config))
    texts = Texts("red" * 400, complex_human_instruction="")
    encoded = load(folder, "text-encoder").encode([texts])[0]
    assert encoded.tensors["prompt_embeds"].shape[1] == 300
    with torch.no_grad():
        expected = SanaPipeline.from_pretrained(folder).encode_prompt(
            texts.prompt, do_classifier_free_guidance=False
        )[0]
    assert torch.equal(encoded.tensors["prompt_embeds"], expected)


def test_a_tokenizer_that_is_only_a_sentencepiece_model_is_loaded(
    load: Callable[..., Any], tmp_path: Path
) -> None:
    """So T5's published ones are."""
    folder = Path(shutil.copytree(PIXART.folders[0], tmp_path / "pixart"))
    tokenizer = folder / "tokenizer"
    shutil.rmtree(tokenizer)
    tokenizer.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a large red circle on white", "a small blue square"] * 20),
        model_prefix=str(tokenizer / "spiece"),
        vocab_size=26,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512})
    )
    encoder = load(folder, "text-encoder")
    assert encoder.pipeline.tokenizer("red circle").input_ids[-1] == 1
    mask = encoder.encode([Texts("a red circle")])[0].tensors["prompt_attention_mask"]
    assert 3 < mask.sum() < mask.numel()


def test_not_a_number_is_an_error_and_not_an_embedding(load: Callable[..., Any]) -> None:
    encoder = load(SANA.folders[0], "text-encoder")
    next(encoder.pipeline.text_encoder.parameters()).data.fill_(torch.nan)
    (problem,) = encoder.encode([Texts(None, negative=True)])
    assert isinstance(problem, NumericalError)
    assert "negative_prompt_embeds" in str(problem)
