"""Builds the CLIP tokenizer of the drawn world: one token for each word of its captions.

Any other text falls apart into shorter tokens, down to bytes, and never fails.
"""

from collections.abc import Sequence
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """A plain CLIP tokenizer, byte-level, with room for `MAX_TOKENS` tokens.

    Args:
        words: What becomes one token each; lower case, in printable ASCII.
    """
    merges = learn_merges(words)
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *dict.fromkeys(left + right for left, right in merges),
        START,
        END,
    ]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, in order, until each word is one token (Sennrich et al. 2016, Alg. 1)."""
    parts = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while any(len(pieces) > 1 for pieces in parts.values()):
        counts: dict[tuple[str, str], int] = {}
        for pieces in parts.values():
            for pair in pairwise(pieces):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for word, pieces in parts.items():
            parts[word] = _merge(pieces, best)
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        # A piece that has just been merged is not merged again: it is longer than pair[0].
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
