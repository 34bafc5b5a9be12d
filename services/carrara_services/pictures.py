"""A part's pixels as the picture that a caller gets."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from carrara_models.pixels import to_uint8


def picture(pixels: torch.Tensor, *, png: bool) -> np.ndarray:
    """Makes a picture.

    Args:
        pixels: [1, 3, H, W]; what is outside [-1, 1] is clamped.
        png: Whether the result is a PNG file's bytes instead of [H, W, 3].

    Returns:
        uint8 [H, W, 3] in [0, 255], or uint8 [bytes].
    """
    image = to_uint8(pixels)
    if not png:
        return image
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return np.frombuffer(file.getvalue(), dtype=np.uint8)
