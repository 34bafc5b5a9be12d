from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5EncoderModel, T5Tokenizer

from carrara_models.drawn_world.captions import caption_words
from carrara_models.training.errors import RecipeError
from carrara_models.training.t5 import MAX_TOKENS, build_t5_tokenizer
from carrara_models.training.text_conditioning import FrozenTextEncoder
from carrara_models.training.text_encoder import Teacher


def test_each_word_of_the_grammar_is_one_token() -> None:
    tokenizer = build_t5_tokenizer(("en", "zh"))
    for word in caption_words("en"):
        pieces = tokenizer.tokenize(word)
        assert len(pieces) == 1, pieces
    assert tokenizer.unk_token_id not in tokenizer("红色的圆在左边").input_ids


def test_other_words_fall_apart_into_letters() -> None:
    tokenizer = build_t5_tokenizer(("en",))
    ids = tokenizer("a zebra, 42!").input_ids
    assert tokenizer.unk_token_id not in ids
    assert len(ids) > 6
    assert ids[-1] == tokenizer.eos_token_id


def test_what_is_trained_is_loaded_as_if_does(runs: Any) -> None:
    folder = runs.of("t5")
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    model = T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    assert tokenizer.model_max_length == MAX_TOKENS
    tokens = tokenizer(
        ["a red circle", "red"], padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    assert states.shape == (2, MAX_TOKENS, 16)
    assert torch.isfinite(states).all()


def test_a_word_is_read_without_those_that_follow(runs: Any) -> None:
    folder = runs.of("t5")
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    model = T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    one, other = (
        tokenizer(f"a green {noun} on black", return_tensors="pt").input_ids
        for noun in ("triangle", "circle")
    )
    with torch.no_grad():
        difference = (model(one).last_hidden_state - model(other).last_hidden_state).abs()
    before, after = difference[0, :2], difference[0, 2:]
    assert (before < 1e-6).all()
    assert (after.amax(dim=-1) > 1e-3).all()


def test_a_teacher_of_other_width_or_words_or_of_a_clip_is_refused(
    runs: Any, tmp_path: Path
) -> None:
    for changes, message in (
        (("shape.width=32",), "states are 16 wide: set shape.width alike, not to 32"),
        (('data.languages=["zh"]',), "tokenizer knows other words"),
        (("kind=clip",), "teacher is for a text encoder of kind t5"),
    ):
        with pytest.raises(RecipeError, match=message):
            runs.train("taught-t5", tmp_path / str(len(message)), *changes)


def test_each_state_has_the_teachers_of_the_same_word_to_become_like(runs: Any) -> None:
    pupil = FrozenTextEncoder(runs.of("taught-t5"))
    teacher = Teacher(runs.of("text-encoder"), pupil.tokenizer, pupil.model)
    clip = FrozenTextEncoder(runs.of("text-encoder"))
    caption = "a red circle"
    wanted, states = teacher.states([caption])[0], clip.encode([caption])["prompt_embeds"][0]
    assert clip.tokenizer.tokenize(caption)[2] == "circle</w>"
    assert pupil.tokenizer.tokenize(caption)[2] == "▁circle"
    # CLIP has a token before the first word, T5 has not; both then have one that ends the caption.
    assert torch.equal(wanted[2], states[3])
    assert torch.equal(wanted[3], states[4])
    assert torch.equal(wanted[-1], states[-1])
    assert len(wanted) == MAX_TOKENS
