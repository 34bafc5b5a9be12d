"""Stored pictures to pixels of the wanted size; refuses what is broken, too large or unsuitable.

It knows nothing of captions or of where a picture comes from.
"""

import io
import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from carrara_models.training.data.records import Reason, SkipError

# Pillow has readers for some forty formats; these three are what data sets hold.
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_SOURCE_PIXELS = 8192 * 8192  # below what Pillow warns of as a decompression bomb
# A JPEG is decoded at half, a quarter or an eighth of its size where that leaves this many times
# the wanted size; the gap of two is that of Pillow's thumbnails.
DRAFT_GAP = 2
TRANSPARENT_SHOWS = (255, 255, 255, 255)

Crop = Literal["centre", "random"]


@dataclass(frozen=True)
class Framing:
    """What becomes of a picture: the largest part of the wanted aspect ratio, resized."""

    height: int
    width: int
    crop: Crop = "centre"
    """Which part: the middle one, or one drawn evenly."""
    min_pixels: int = 1
    """A stored picture with fewer is skipped."""
    max_aspect_ratio: float = math.inf
    """A stored picture whose longer side is more than this many times the shorter is skipped."""


def frame_picture(stored: bytes, framing: Framing, rng: np.random.Generator) -> Tensor:
    """Pixels [3, H, W], float32 in [-1, 1], of a stored picture.

    It is turned as its EXIF orientation says; what is transparent shows white.

    Args:
        stored: A JPEG, PNG or WebP file.
        framing: The wanted size, and what is skipped.
        rng: Where the part is cut, if that is random.

    Raises:
        SkipError: The picture is broken, too large or unsuitable.
    """
    if not stored:
        raise SkipError(Reason.EMPTY)
    image = _open(stored)
    _check(image, framing)
    longest = DRAFT_GAP * max(framing.height, framing.width)
    try:
        image.draft(None, (longest, longest))
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            ground = Image.new("RGBA", image.size, TRANSPARENT_SHOWS)
            image = Image.alpha_composite(ground, image)
        image = image.convert("RGB")
    except Exception:  # a format's reader raises whatever it trips over in damaged data
        raise SkipError(Reason.DAMAGED) from None
    centering = (0.5, 0.5) if framing.crop == "centre" else (rng.random(), rng.random())
    image = ImageOps.fit(
        image, (framing.width, framing.height), Image.Resampling.BICUBIC, centering=centering
    )
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)) / 127.5 - 1
    return pixels.permute(2, 0, 1).contiguous()


def _open(stored: bytes) -> Image.Image:
    """Reads the head of a picture; Pillow decodes the rest when it is needed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(stored), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise SkipError(Reason.TOO_MANY_PIXELS) from None
    except Exception:
        raise SkipError(Reason.NOT_A_PICTURE) from None


def _check(image: Image.Image, framing: Framing) -> None:
    pixels = image.width * image.height
    if pixels > MAX_SOURCE_PIXELS:
        raise SkipError(Reason.TOO_MANY_PIXELS)
    if pixels < framing.min_pixels:
        raise SkipError(Reason.TOO_FEW_PIXELS)
    if max(image.size) > framing.max_aspect_ratio * min(image.size):
        raise SkipError(Reason.TOO_OBLONG)
    if image.mode.startswith(("I", "F")):  # Pillow would clip them instead of scaling them
        raise SkipError(Reason.NOT_8_BIT)
