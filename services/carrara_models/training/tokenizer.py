"""Builds a CLIP tokenizer of a data set: one token for each word of its captions.

Any other text falls apart into shorter tokens, down to bytes, and never fails.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from carrara_models.drawn_world.captions import caption_words

MAX_TOKENS = 48
FREQUENT_WORDS = 1000
START, END = "<|startoftext|>", "<|endoftext|>"

Merge = tuple[str, str]

LETTERS = re.compile(r"[^\W\d_]+")
# From here on lie the scripts of Chinese, Japanese and Korean, whose runs of letters are no words.
FIRST_UNSPACED = "\u2e80"


def build_tokenizer(words: Sequence[str], *, unspaced_words: Sequence[str] = ()) -> CLIPTokenizer:
    """A plain CLIP tokenizer, byte-level, with room for `MAX_TOKENS` tokens.

    Args:
        words: What becomes one token each between spaces; lower case, in printable ASCII.
        unspaced_words: What becomes one token each, and two within a longer run of letters:
            words of a script without spaces. Their characters become one token each as well, so
            that other words of the same characters stay short.
    """
    merges = learn_merges([[*word[:-1], word[-1] + "</w>"] for word in words])
    characters = sorted({character for word in unspaced_words for character in word})
    for runs in (characters, unspaced_words):
        pieces = [list(_to_bytes(run)) for run in runs]
        # CLIP marks the last piece of a run, so that each word is learned within a run and at its
        # end. Characters come first: no merge then joins bytes of two of them.
        ends = [[*run[:-1], run[-1] + "</w>"] for run in pieces]
        merges += learn_merges([*pieces, *ends], merges=merges)
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


def build_caption_tokenizer(languages: Iterable[str]) -> CLIPTokenizer:
    """The tokenizer of the captions in `languages`."""
    return build_tokenizer(
        caption_words("en") if "en" in languages else (),
        unspaced_words=caption_words("zh") if "zh" in languages else (),
    )


def build_tokenizer_of(captions: Iterable[str]) -> CLIPTokenizer:
    """The tokenizer of the most frequent words in `captions`, of any language."""
    counts = Counter[str]()
    for caption in captions:
        for run in LETTERS.findall(caption.lower()):
            counts.update(run if max(run) >= FIRST_UNSPACED else [run])
    words = [word for word, _ in counts.most_common(FREQUENT_WORDS)]
    return build_tokenizer(
        [word for word in words if word.isascii()],
        unspaced_words=[word for word in words if not word.isascii()],
    )


def learn_merges(words: Sequence[Sequence[str]], *, merges: Sequence[Merge] = ()) -> list[Merge]:
    """Byte-pair merges, in order, until each word is one token (Sennrich et al. 2016, Alg. 1).

    Args:
        words: Each as its pieces.
        merges: Those that come before, and are applied before; not among the ones returned.
    """
    parts = {tuple(word): list(word) for word in words}
    for merge in merges:
        parts = {word: _merge(pieces, merge) for word, pieces in parts.items()}
    learned = []
    while any(len(pieces) > 1 for pieces in parts.values()):
        counts: dict[Merge, int] = {}
        for pieces in parts.values():
            for pair in pairwise(pieces):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        learned.append(best)
        for word, pieces in parts.items():
            parts[word] = _merge(pieces, best)
    return learned


def _to_bytes(text: str) -> str:
    """`text` as the byte-level alphabet spells it."""
    ((spelled, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return spelled


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        # A piece that has just been merged is not merged again: it is longer than pair[0].
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
