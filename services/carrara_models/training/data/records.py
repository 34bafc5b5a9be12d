"""One picture with its captions as a data set holds it, and why one cannot be used.

It knows nothing of pixels.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

MAX_PICTURE_BYTES = 64 << 20
SURROGATES = re.compile("[\ud800-\udfff]")
MAX_TEXT_BYTES = 1 << 20  # of a caption or of a picture's metadata


class DataError(ValueError):
    """A data set that nothing can be trained on; the message says why."""


class Reason(StrEnum):
    """Why a picture is skipped."""

    NO_PICTURE = "no picture"
    NO_CAPTION = "no caption"
    UNREADABLE = "cannot be read"
    EMPTY = "zero bytes"
    TOO_MANY_BYTES = "too many bytes"
    NOT_A_PICTURE = "not a JPEG, PNG or WebP picture"
    DAMAGED = "damaged or cut short"
    TOO_MANY_PIXELS = "too many pixels"
    NOT_8_BIT = "not 8 bits a channel"
    TOO_FEW_PIXELS = "too few pixels"
    TOO_OBLONG = "too oblong"
    PICKLED = "has a pickled member"


class SkipError(Exception):
    """This one picture cannot be used.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """A picture as it is stored, JPEG, PNG or WebP, and its captions, of which any may be taken."""

    picture: bytes
    captions: tuple[str, ...]


def captions_in(value: object) -> tuple[str, ...]:
    """The captions that a column's value holds, stripped: a text, or a list of them.

    What UTF-8 cannot express, half of a surrogate pair, is no caption: no tokenizer takes it.
    """
    if isinstance(value, str):
        caption = value.strip()
        return (caption,) if caption and not SURROGATES.search(caption) else ()
    if isinstance(value, list):
        return tuple(caption for part in value for caption in captions_in(part))
    return ()


def caption_from(text: bytes) -> tuple[str, ...]:
    """The caption that a text file holds; none, if it is too long or not UTF-8."""
    if len(text) > MAX_TEXT_BYTES:
        return ()
    try:
        return captions_in(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return ()


def read_picture_file(path: Path) -> bytes:
    """The bytes of a picture's file.

    Raises:
        SkipError: It cannot be read, or is larger than `MAX_PICTURE_BYTES`.
    """
    try:
        with path.open("rb") as file:
            return read_picture(file, size=path.stat().st_size)
    except OSError:
        raise SkipError(Reason.UNREADABLE) from None


def read_picture(file: BinaryIO, *, size: int) -> bytes:
    """The next `size` bytes of `file`, unless they are more than `MAX_PICTURE_BYTES`.

    Raises:
        SkipError: They are more.
    """
    if size > MAX_PICTURE_BYTES:
        raise SkipError(Reason.TOO_MANY_BYTES)
    return file.read(size)
