"""A small T5 for the drawn world's captions: the text encoder of Imagen's layout.

Its tokenizer knows the grammar's words; any other text falls apart into letters, and what is no
letter of it is unknown.
"""

from __future__ import annotations

import string
from collections.abc import Iterable

import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from carrara_models.drawn_world.captions import Language, caption_words

MAX_TOKENS = 77  # as `IFPipeline` pads every caption
# Too low for a gradient: it stays.
LATER_WORDS = -30.0
BIAS_DEVIATION = 2.0
START_OF_WORD = "▁"
# Logarithms of how likely a piece is: the fewer pieces, the likelier the text.
WORD_SCORE, LETTER_SCORE, SPACE_SCORE = -2.0, -6.0, -4.0


def build_t5_tokenizer(languages: Iterable[Language]) -> T5Tokenizer:
    """A T5 tokenizer with one piece for each word of the grammar."""
    words = dict.fromkeys(
        word for language in languages for word in caption_words(language) if word.strip()
    )
    letters = dict.fromkeys(
        [
            *string.ascii_lowercase,
            *string.digits,
            *string.punctuation,
            *sorted({letter for word in words for letter in word}),
        ]
    )
    pieces = {START_OF_WORD + word: WORD_SCORE for word in words}
    # A script without spaces has its words within a run.
    pieces |= {word: WORD_SCORE for word in words if not word.isascii()}
    pieces |= {letter: LETTER_SCORE for letter in letters if letter not in pieces}
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (START_OF_WORD, SPACE_SCORE)]
    return T5Tokenizer(vocab=[*special, *pieces.items()], extra_ids=0, model_max_length=MAX_TOKENS)


def build_t5(tokenizer: T5Tokenizer, *, width: int, layers: int, heads: int) -> T5EncoderModel:
    """A text model with fresh weights that fits `tokenizer`."""
    model = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // heads,
            d_ff=4 * width,
            num_layers=layers,
            num_heads=heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )
    # Words find their neighbours by these biases alone. They begin near 0, and the optimizer
    # moves them by a learning rate a step: preferences to begin with spare that way.
    biases = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    torch.nn.init.normal_(biases, std=BIAS_DEVIATION)
    # From left to right, as CLIP's text model reads: the state of "green" then cannot depend on the
    # noun that follows, and a pair that was never trained on has states that were. The second half
    # of the buckets is for later words (Raffel et al. 2020, `T5Attention`).
    with torch.no_grad():
        biases[len(biases) // 2 :] = LATER_WORDS
    return model
