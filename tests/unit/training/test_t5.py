from __future__ import annotations

from pathlib import Path

import torch
from transformers import T5EncoderModel, T5Tokenizer

from carrara_models.drawn_world.captions import caption_words
from carrara_models.training.curriculum import Curriculum
from carrara_models.training.loop import LoopSettings, Pace
from carrara_models.training.t5 import MAX_TOKENS, build_t5_tokenizer
from carrara_models.training.text_encoder import TextEncoderShape, train_text_encoder


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


def test_what_is_trained_is_loaded_as_if_does(tmp_path: Path) -> None:
    train_text_encoder(
        tmp_path,
        settings=LoopSettings(steps=2, batch_size=2, learning_rate=1e-3, bfloat16=False),
        pace=Pace(workers=0, log_every=1, save_every=2, sample_every=10**6),
        shape=TextEncoderShape(width=16, layers=1, heads=2),
        kind="t5",
        curriculum=Curriculum(max_objects=2, languages=("en",)),
    )
    tokenizer = T5Tokenizer.from_pretrained(tmp_path / "tokenizer")
    model = T5EncoderModel.from_pretrained(tmp_path / "text_encoder").eval()
    assert tokenizer.model_max_length == MAX_TOKENS
    tokens = tokenizer(
        ["a red circle", "red"], padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    assert states.shape == (2, MAX_TOKENS, 16)
    assert torch.isfinite(states).all()
