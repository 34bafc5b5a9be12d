"""Pixels to bytes and onward, in the float order of diffusers' `VaeImageProcessor`."""

from __future__ import annotations

import numpy as np
import torch


def to_uint8(pixels: torch.Tensor) -> np.ndarray:
    """Rounds one image to bytes.

    Args:
        pixels: float32 [1, 3, H, W] in [-1, 1].

    Returns:
        uint8 [H, W, 3].
    """
    return batch_to_uint8(pixels)[0]


def batch_to_uint8(pixels: torch.Tensor) -> np.ndarray:
    """Rounds images to bytes.

    Args:
        pixels: [B, 3, H, W] in [-1, 1].

    Returns:
        uint8 [B, H, W, 3].
    """
    images = (pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().float().numpy()
    return painted_to_uint8(images)


def painted_to_uint8(images: np.ndarray) -> np.ndarray:
    """Rounds what diffusers' pipelines give as `output_type="np"` to bytes.

    Args:
        images: [B, H, W, 3] in [0, 1].

    Returns:
        uint8 [B, H, W, 3].
    """
    return (images * 255).round().astype(np.uint8)


def handed_on(pixels: torch.Tensor) -> torch.Tensor:
    """What a next pipeline makes of a decoder's picture, if it is given as `output_type="pt"`.

    Args:
        pixels: [1, 3, H, W] in [-1, 1].

    Returns:
        The same numbers after the way to [0, 1] and back, which rounds.
    """
    return 2.0 * (pixels * 0.5 + 0.5).clamp(0, 1) - 1.0
