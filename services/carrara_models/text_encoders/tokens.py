"""Tokenizers: loaded, held to the text encoder's vocabulary, and asked what they cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from carrara_models.checkpoints import Checkpoint
from carrara_models.errors import CheckpointError
from carrara_models.parts import Texts


def load_tokenizer(checkpoint: Checkpoint, component: str, *, loader: Any) -> Any:
    """Loads a tokenizer with transformers.

    Raises:
        CheckpointError: A file is missing or broken.
    """
    folder = checkpoint.path / component
    try:
        return loader.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        name = loader.__name__
        raise CheckpointError(f"{folder} cannot be loaded as {name}: {error}") from error


def check_vocabulary(
    checkpoint: Checkpoint, tokenizer: Any, text_encoder: Any, *, suffix: str
) -> None:
    """Refuses a tokenizer that makes more or other tokens than its text encoder takes.

    Args:
        suffix: Of both components: "", "_2", "_3".

    Raises:
        CheckpointError: What the two say.
    """
    config = text_encoder.config
    folder = checkpoint.path / f"tokenizer{suffix}"
    positions = getattr(config, "max_position_embeddings", None)  # T5 has none
    is_limited = tokenizer.model_max_length < VERY_LARGE_INTEGER  # Gemma's is cut by its pipeline
    if positions is not None and is_limited and tokenizer.model_max_length > positions:
        raise CheckpointError(
            f"{folder} makes up to {tokenizer.model_max_length} tokens; "
            f"text_encoder{suffix} takes {positions}."
        )
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"{folder} knows {len(tokenizer)} tokens; "
            f"text_encoder{suffix} knows {config.vocab_size}."
        )


def cut_words(tokenizer: Any, text: str, *, max_length: int) -> str:
    """The words of a text that do not fit; "" where all do.

    Args:
        max_length: In tokens, the special ones included.
    """
    whole = tokenizer([text], truncation=False, verbose=False).input_ids[0]
    if len(whole) <= max_length:
        return ""
    ends = int(whole[-1] in tokenizer.all_special_ids)  # Gemma marks the start only
    return tokenizer.decode(whole[max_length - ends : len(whole) - ends])


def read_texts(pieces: Sequence[Texts], fields: Sequence[str]) -> list[list[str]]:
    """What is read of each field: the texts of all pieces.

    The first field stands in for others that are not given or empty, as in the pipelines.
    """
    firsts = [getattr(piece, fields[0]) or "" for piece in pieces]
    return [
        [getattr(piece, field) or first for piece, first in zip(pieces, firsts, strict=True)]
        for field in fields
    ]


def cut_texts(texts: Texts, readers: Mapping[str, tuple[Any, int]]) -> dict[str, str]:
    """The words of each text that do not fit; where several tokenizers read it, the most cut ones.

    Args:
        readers: For each field, its tokenizer and how many tokens that makes; the first field
            stands in for others, as in `read_texts`.
    """
    first = next(iter(readers))
    cut: dict[str, str] = {}
    for name, (tokenizer, max_length) in readers.items():
        field = name if getattr(texts, name) else first
        words = cut_words(tokenizer, getattr(texts, field) or "", max_length=max_length)
        if len(words) > len(cut.get(field, "")):
            cut[field] = words
    return cut
