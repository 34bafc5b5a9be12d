import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from carrara_models.drawn_world.captions import caption_words, write_caption
from carrara_models.drawn_world.scenes import sample_scene
from carrara_models.training.tokenizer import MAX_TOKENS, build_tokenizer, learn_merges

TOKENIZER = build_tokenizer(caption_words())


@pytest.mark.parametrize("word", caption_words())
def test_a_caption_word_is_one_token(word):
    start, token, end = TOKENIZER(word).input_ids
    assert (start, end) == (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)
    assert TOKENIZER.decode([token]).strip() == word


def test_every_caption_fits_with_room_to_spare():
    rng = np.random.default_rng(0)
    lengths = [len(TOKENIZER(write_caption(sample_scene(rng), rng)).input_ids) for _ in range(2000)]
    assert max(lengths) < MAX_TOKENS


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_becomes_known_tokens(text):
    ids = TOKENIZER(text, padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids
    assert len(ids) == MAX_TOKENS
    assert all(0 <= index < len(TOKENIZER) for index in ids)


def test_a_saved_tokenizer_loads_as_a_plain_clip_tokenizer(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    caption = "A Large red circle, über 1 мал & a blue 🟦"
    assert loaded(caption).input_ids == TOKENIZER(caption).input_ids
    assert loaded.model_max_length == MAX_TOKENS
    assert loaded.pad_token_id == loaded.eos_token_id == TOKENIZER.eos_token_id


def test_merges_end_when_every_word_is_whole():
    assert learn_merges(["a"]) == []
    assert learn_merges(["ab", "abc"]) in (
        [("a", "b"), ("ab", "c</w>"), ("a", "b</w>")],
        [("b", "c</w>"), ("a", "bc</w>"), ("a", "b</w>")],
        [("b", "c</w>"), ("a", "b</w>"), ("a", "bc</w>")],
    )
