"""Classifier-free guidance (Eq. 6, Ho and Salimans 2022), in the pipelines' order of operations."""

from __future__ import annotations

import torch


def guided(
    output: torch.Tensor, guidance_scale: float | None, *, guidance_rescale: float = 0.0
) -> torch.Tensor:
    """Combines both halves of a network's output.

    Args:
        output: [2n, ...]; the negative half first.
        guidance_scale: None = guidance off: the output, [n, ...], is given back.
        guidance_rescale: Share of the prediction that is brought back to the deviation which the
            positive half has (Eq. 15 and 16, Lin et al. 2023); 0 = none.

    Returns:
        [n, ...], in the dtype of `output`.
    """
    if guidance_scale is None:
        return output
    negative, positive = output.chunk(2)
    combined = negative + guidance_scale * (positive - negative)
    if guidance_rescale > 0.0:
        axes = list(range(1, positive.ndim))
        deviation = positive.std(dim=axes, keepdim=True)
        rescaled = combined * (deviation / combined.std(dim=axes, keepdim=True))
        combined = guidance_rescale * rescaled + (1 - guidance_rescale) * combined
    return combined


def guided_with_variance(
    output: torch.Tensor, guidance_scale: float | None, *, channels: int
) -> torch.Tensor:
    """Combines both halves of a network that predicts noise and variance.

    The variance is the positive half's: guidance is for the noise alone.

    Args:
        output: [2n, C + V, ...]; the negative half first.
        channels: C, of the noise.

    Returns:
        [n, C + V, ...].
    """
    if guidance_scale is None:
        return output
    negative, positive = output.chunk(2)
    noise = guided(torch.cat([negative[:, :channels], positive[:, :channels]]), guidance_scale)
    return torch.cat([noise, positive[:, channels:]], dim=1)
