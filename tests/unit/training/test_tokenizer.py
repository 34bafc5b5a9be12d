import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from carrara_models.drawn_world.captions import (
    LANGUAGES,
    caption_words,
    write_caption,
    write_paraphrase,
)
from carrara_models.drawn_world.scenes import sample_scene
from carrara_models.training.tokenizer import (
    MAX_TOKENS,
    build_caption_tokenizer,
    build_tokenizer_of,
    learn_merges,
)

TOKENIZER = build_caption_tokenizer(LANGUAGES)


@pytest.mark.parametrize("word", [*caption_words("en"), *caption_words("zh")])
def test_a_caption_word_is_one_token(word):
    start, token, end = TOKENIZER(word).input_ids
    assert (start, end) == (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)
    assert TOKENIZER.decode([token]).strip() == word


def test_words_within_a_run_of_chinese_are_one_token_each():
    ids = TOKENIZER("在深蓝色的背景上，一个大大的蓝色正方形在左上角").input_ids[1:-1]
    words = ["在", "深蓝色", "的", "背景", "上", "，", "一个", "大大的", "蓝色", "正方形", "在"]
    assert [TOKENIZER.decode([token]) for token in ids] == [*words, "左上角"]


def test_chinese_words_beyond_the_grammar_fall_apart_into_characters_and_bytes():
    ids = TOKENIZER("红方角").input_ids[1:-1]
    assert [TOKENIZER.decode([token]) for token in ids] == ["红", "方", "角"]
    assert len(TOKENIZER("龙").input_ids) == 2 + len("龙".encode())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("write", [write_caption, write_paraphrase])
def test_every_caption_fits_with_room_to_spare(language, write):
    rng = np.random.default_rng(0)
    lengths = [
        len(TOKENIZER(write(sample_scene(rng, max_objects=3), rng, language=language)).input_ids)
        for _ in range(1000)
    ]
    assert max(lengths) < MAX_TOKENS


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_that_are_trained_on_hold_whole_words_alone(language):
    rng = np.random.default_rng(1)
    words = {TOKENIZER(word).input_ids[1] for word in caption_words(language)}
    within = {TOKENIZER(word + "。").input_ids[1] for word in caption_words(language)}
    within |= {TOKENIZER(word + "一").input_ids[1] for word in caption_words(language)}
    for _ in range(300):
        caption = write_caption(sample_scene(rng, max_objects=3), rng, language=language)
        assert set(TOKENIZER(caption).input_ids[1:-1]) <= words | within, caption


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_becomes_known_tokens(text):
    ids = TOKENIZER(text, padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids
    assert len(ids) == MAX_TOKENS
    assert all(0 <= index < len(TOKENIZER) for index in ids)


def test_a_saved_tokenizer_loads_as_a_plain_clip_tokenizer(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    caption = "A Large red circle, über 1 мал & 一个深蓝色的龙 🟦"
    assert loaded(caption).input_ids == TOKENIZER(caption).input_ids
    assert loaded.model_max_length == MAX_TOKENS
    assert loaded.pad_token_id == loaded.eos_token_id == TOKENIZER.eos_token_id


def test_merges_end_when_every_word_is_whole():
    assert learn_merges([["a</w>"]]) == []
    assert learn_merges([["a", "b</w>"], ["a", "b", "c</w>"]]) in (
        [("a", "b"), ("ab", "c</w>"), ("a", "b</w>")],
        [("b", "c</w>"), ("a", "bc</w>"), ("a", "b</w>")],
        [("b", "c</w>"), ("a", "b</w>"), ("a", "bc</w>")],
    )


def test_later_merges_build_on_earlier_ones():
    assert learn_merges([["a", "b", "c"]], merges=[("b", "c")]) == [("a", "bc")]


def test_the_words_of_any_captions_are_one_token_each_and_others_never_fail():
    captions = ["A tabby cat, by the sea.", "Ein schönes Haus", "海边的房子"]
    tokenizer = build_tokenizer_of(captions)
    assert tokenizer.tokenize("The tabby cat") == ["the</w>", "tabby</w>", "cat</w>"]
    assert tokenizer.tokenize("schönes")[0].endswith("</w>")
    assert len(tokenizer.tokenize("schönes")) == 1
    assert len(tokenizer.tokenize("海的房")) == 3
    for text in ("zebra!", "山", "ñandú 42"):
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids[1:-1]
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(
            " ", ""
        )


def test_frequent_words_come_first():
    words = [f"{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}{chr(97 + n // 676)}" for n in range(1200)]
    tokenizer = build_tokenizer_of([" ".join(words[:1000])] * 2 + [" ".join(words)])
    assert len(tokenizer.tokenize(words[0])) == 1
    assert len(tokenizer.tokenize(words[-1])) > 1
