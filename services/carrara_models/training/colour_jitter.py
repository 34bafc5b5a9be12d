"""Turns the colours of pictures, so that what is seen of shapes does not hang on colours."""

from collections.abc import Sequence

import torch
from torch import Tensor

from carrara_models.training.randomness import Draw, chosen_of, torch_generator_of

JITTER_CONTRAST = 0.9


def jitter(
    pixels: Tensor, positions: Sequence[int], *, share: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Turns the colours of some pictures at random in RGB, all of a picture alike.

    Args:
        pixels: [B, 3, H, W] in [-1, 1].
        positions: Of the pictures in the run, which alone say what is drawn.
        share: Of the pictures.
        seed: Of the run.

    Returns:
        The pixels, and which were turned, bool [B].
    """
    if not share:
        return pixels, torch.zeros(len(positions), dtype=torch.bool)
    chosen = chosen_of(seed, Draw.JITTER, positions, share)
    turned = pixels.clone()
    for index in chosen.nonzero().flatten().tolist():
        torch_generator = torch_generator_of(seed, Draw.JITTER_TURN, positions[index])
        turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch_generator))
        turned[index] = torch.einsum("ij,jhw->ihw", JITTER_CONTRAST * turn, pixels[index])
    return turned.clamp(-1, 1), chosen
