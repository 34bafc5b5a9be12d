"""Classifier-free guidance (Eq. 6, Ho and Salimans 2022), in the pipelines' order of operations."""

from __future__ import annotations

import torch


def guided(output: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Combines both halves of a network's output.

    Args:
        output: [2, ...]; the negative half first.
        guidance_scale: Above 1.

    Returns:
        [1, ...], in the dtype of `output`.
    """
    negative, positive = output.chunk(2)
    return negative + guidance_scale * (positive - negative)
