"""Pixels to bytes, in the float order of diffusers' `VaeImageProcessor`."""

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
    image = (pixels * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).cpu().float().numpy()
    return (image * 255).round().astype(np.uint8)
