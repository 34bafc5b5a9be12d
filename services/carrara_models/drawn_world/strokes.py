"""Pictures of plain strokes: every colour on every background, and none of the scenes' shapes.

An autoencoder that sees them learns colours apart from shapes, while the held-out pairs of shape
and colour stay unseen.
"""

import math

import numpy as np
import torch
from torch import Tensor

from carrara_models.drawn_world.drawing import cover
from carrara_models.drawn_world.scenes import BACKGROUNDS, COLOURS

# As fractions of the side; an aperture is half of what an arc spans, and never closes a ring.
RADII = (0.06, 0.35)
HALF_WIDTHS = (0.02, 0.07)
APERTURES = (0.15 * math.pi, 0.75 * math.pi)
STROKES = 3


def draw_strokes(count: int, rng: np.random.Generator, *, height: int, width: int) -> Tensor:
    """Pictures [count, 3, H, W], float32 in [-1, 1], of three arcs each, laid over each other.

    Args:
        count: How many pictures.
        rng: The source of every choice.
        height: Rows of the pictures, in pixels.
        width: Columns of the pictures, in pixels.
    """
    side = min(height, width)
    pictures = _paints(BACKGROUNDS, count, rng).repeat(1, 1, height, width)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([columns, rows], dim=-1) + 0.5  # [H, W, 2], (x, y) in pixels
    for _ in range(STROKES):
        centres = _draws((0.1, 0.9), (count, 1, 1, 2), rng) * torch.tensor([width, height])
        radii, half_widths, apertures, turns = (
            _draws(bounds, (count, 1, 1), rng)
            for bounds in (RADII, HALF_WIDTHS, APERTURES, (0.0, 2 * math.pi))
        )
        distances = _arc_distance(points - centres, radii * side, apertures, turns)
        masks = cover(distances - half_widths * side)[:, None]
        pictures = pictures + masks * (_paints(COLOURS, count, rng) - pictures)
    return pictures * 2 - 1


def _arc_distance(p: Tensor, radius: Tensor, aperture: Tensor, turn: Tensor) -> Tensor:
    """Distance to an arc around the origin (Quilez, "2D distance functions"), in units of `p`."""
    x, y = p.unbind(-1)
    x, y = (x * turn.cos() - y * turn.sin()).abs(), x * turn.sin() + y * turn.cos()
    tip_x, tip_y = aperture.sin() * radius, aperture.cos() * radius
    beside = torch.atan2(x, y) <= aperture
    return torch.where(
        beside, (torch.hypot(x, y) - radius).abs(), torch.hypot(x - tip_x, y - tip_y)
    )


def _paints(table: dict[str, tuple[int, int, int]], count: int, rng: np.random.Generator) -> Tensor:
    """[count, 3, 1, 1] in [0, 1]."""
    paints = torch.tensor(list(table.values())) / 255
    return paints[torch.from_numpy(rng.integers(len(paints), size=count))][:, :, None, None]


def _draws(bounds: tuple[float, float], shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.uniform(*bounds, size=shape)).float()
