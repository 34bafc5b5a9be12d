"""A tiny T5 with a tokenizer of words and letters, without sentencepiece."""

from __future__ import annotations

from pathlib import Path

from transformers import T5Config, T5EncoderModel, T5Tokenizer

WORDS = ("large", "small", "red", "blue", "circle", "square", "on", "the", "white", "background")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,-"


def write_t5_tokenizer(folder: Path) -> int:
    """Writes it; returns how many tokens it knows."""
    pieces = [("▁" + word, -2.0) for word in WORDS] + [(letter, -6.0) for letter in LETTERS]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    T5Tokenizer(vocab=[*special, *pieces], extra_ids=0).save_pretrained(folder)
    return len(special) + len(pieces)


def write_t5(folder: Path, *, tokens: int, width: int) -> None:
    T5EncoderModel(
        T5Config(
            vocab_size=tokens,
            d_model=width,
            d_kv=8,
            d_ff=2 * width,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    ).save_pretrained(folder)
