"""Scenes whose objects are blobs: all as told, but of no shape.

A denoiser that sees them learns colours apart from shapes, while the held-out pairs of shape and
colour stay unseen.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from carrara_models.drawn_world.drawing import cover, draw_grounds, from_centres, paint_objects
from carrara_models.drawn_world.scenes import Scene

# The outline's distance from the centre is a constant and a wave for each of these many bulges.
BULGES = torch.tensor([2, 3, 4, 5, 6, 7])
# The height of each wave, as a fraction of the constant; of the more bulges, the lower.
WAVE_HEIGHT = 0.3
STEPS_AROUND = 256


def draw_blobs(
    scenes: Sequence[Scene], rng: np.random.Generator, *, height: int, width: int
) -> Tensor:
    """Pictures [B, 3, H, W], float32 in [-1, 1]; a blob is as large as the shape that it is not.

    Args:
        scenes: What is drawn, but for the shapes.
        rng: The source of every outline.
        height: Rows of the pictures, in pixels.
        width: Columns of the pictures, in pixels.
    """
    pictures = draw_grounds(scenes, height=height, width=width)
    found = [(index, thing) for index, scene in enumerate(scenes) for thing in scene.objects]
    if not found:
        return pictures * 2 - 1
    x, y, radius = torch.tensor([[o.x, o.y, o.radius] for _, o in found]).unbind(-1)
    radius_pixels = (radius * min(height, width))[:, None, None]
    heights, phases = (
        torch.from_numpy(rng.uniform(*bounds, size=(len(found), len(BULGES)))).float()
        for bounds in ((0, WAVE_HEIGHT), (0, 2 * math.pi))
    )
    heights = heights * 2 / BULGES
    around = torch.linspace(0, 2 * math.pi, STEPS_AROUND).expand(len(found), STEPS_AROUND)
    farthest = _outline(around, heights, phases).amax(dim=-1)[:, None, None]
    pixels = from_centres(x, y, height=height, width=width)
    angles = torch.atan2(pixels[..., 1], pixels[..., 0]).flatten(1)
    outlines = _outline(angles, heights, phases).reshape(pixels.shape[:-1]) / farthest
    paint_objects(pictures, found, cover(pixels.norm(dim=-1) - outlines * radius_pixels))
    return pictures * 2 - 1


def _outline(angles: Tensor, heights: Tensor, phases: Tensor) -> Tensor:
    """[N, A]: how far N outlines lie from their centres at angles [N, A], in radians."""
    waves = torch.cos(angles[..., None] * BULGES + phases[:, None])
    return (1 + (waves * heights[:, None]).sum(dim=-1)).clamp_min(0.1)
