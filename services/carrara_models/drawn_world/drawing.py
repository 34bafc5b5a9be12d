"""Draws scenes: batched signed distance functions in torch, anti-aliased at any resolution.

It knows nothing of captions.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from carrara_models.drawn_world.scenes import BACKGROUNDS, COLOURS, SHAPES, Object, Scene

# Brightness of an object runs linearly from 1 + SHADING at its top to 1 - SHADING at its foot.
SHADING = 0.08


def _polygon_distance(p: Tensor, vertices: Sequence[tuple[float, float]]) -> Tensor:
    """Signed distance to a polygon; the sign by counting crossings (Quilez, "2D distance")."""
    x, y = p.unbind(-1)
    squared = torch.full_like(x, math.inf)
    outside = torch.ones_like(x)
    for (ax, ay), (bx, by) in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
        edge_x, edge_y = bx - ax, by - ay
        from_a_x, from_a_y = x - ax, y - ay
        along = (from_a_x * edge_x + from_a_y * edge_y) / (edge_x**2 + edge_y**2)
        along = along.clamp(0, 1)
        squared = torch.minimum(
            squared, (from_a_x - along * edge_x) ** 2 + (from_a_y - along * edge_y) ** 2
        )
        if edge_y != 0:
            crosses = ((y >= ay) != (y >= by)) & (x < ax + edge_x * (y - ay) / edge_y)
            outside = torch.where(crosses, -outside, outside)
    return outside * squared.sqrt()


def _square(p: Tensor) -> Tensor:
    return _polygon_distance(p, [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])


def _triangle(p: Tensor) -> Tensor:
    return _polygon_distance(p, [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)])


def _star(p: Tensor) -> Tensor:
    corners = [
        (radius * math.sin(math.pi * i / 5), -radius * math.cos(math.pi * i / 5) + 0.05)
        for i, radius in enumerate((1.0, 0.44) * 5)
    ]
    return _polygon_distance(p, corners)


def _cross(p: Tensor) -> Tensor:
    a, b = 0.32, 0.95
    upper = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
    lower = [(-x, -y) for x, y in upper]
    return _polygon_distance(p, upper + lower)


def _circle(p: Tensor) -> Tensor:
    return p.norm(dim=-1) - 0.97


def _ring(p: Tensor) -> Tensor:
    return (p.norm(dim=-1) - 0.74).abs() - 0.24


def _crescent(p: Tensor) -> Tensor:
    bite = 0.8 - (p - p.new_tensor([0.52, 0.0])).norm(dim=-1)
    return torch.maximum(p.norm(dim=-1) - 0.97, bite)


def _heart(p: Tensor) -> Tensor:
    """Quilez's heart: two arcs over a right-angled tip, scaled into the unit box."""
    scale = 1.62
    x = p[..., 0].abs() / scale
    y = (0.93 - p[..., 1]) / scale
    lobe = torch.sqrt((x - 0.25) ** 2 + (y - 0.75) ** 2) - math.sqrt(2) / 4
    tip = torch.minimum(
        x**2 + (y - 1) ** 2,
        (x - 0.5 * (x + y).clamp_min(0)) ** 2 + (y - 0.5 * (x + y).clamp_min(0)) ** 2,
    ).sqrt() * torch.sign(x - y)
    return torch.where(x + y > 1, lobe, tip) * scale


# Each takes points [..., 2] in units of the radius, y downwards, and is negative inside.
DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
}


def draw_masks(
    shape: str, *, x: Tensor, y: Tensor, radius: Tensor, height: int, width: int
) -> Tensor:
    """Coverage [N, H, W] in [0, 1] of N objects of one shape.

    Args:
        shape: One of `SHAPES`.
        x: [N], centres as fractions of the width.
        y: [N], centres as fractions of the height, downwards.
        radius: [N], as fractions of the shorter side.
        height: Rows of the mask, in pixels.
        width: Columns of the mask, in pixels.
    """
    radius_pixels = (radius * min(height, width))[:, None, None]
    pixels = from_centres(x, y, height=height, width=width)
    distance = DISTANCES[shape](pixels / radius_pixels[..., None]) * radius_pixels
    return cover(distance)


def from_centres(x: Tensor, y: Tensor, *, height: int, width: int) -> Tensor:
    """Offsets of pixels from N centres, [N, H, W, 2], (x, y) in pixels; see `draw_masks`."""
    side, n = min(height, width), len(x)
    rows = (torch.arange(height) + 0.5 - height / 2)[None, :] - (y[:, None] - 0.5) * side
    columns = (torch.arange(width) + 0.5 - width / 2)[None, :] - (x[:, None] - 0.5) * side
    return torch.stack(
        [columns[:, None, :].expand(n, height, width), rows[:, :, None].expand(n, height, width)],
        dim=-1,
    )


def cover(distance: Tensor) -> Tensor:
    """Coverage in [0, 1] of pixels whose centres lie `distance` pixels outside an outline."""
    return (0.5 - distance).clamp(0, 1)


def draw_scenes(scenes: Sequence[Scene], *, height: int = 64, width: int = 64) -> Tensor:
    """Pictures [B, 3, H, W], float32 in [-1, 1], one per scene.

    A picture that is not square holds the scene in a centred square of its shorter side.
    """
    pictures = draw_grounds(scenes, height=height, width=width)
    for shape in SHAPES:
        found = [
            (index, thing)
            for index, scene in enumerate(scenes)
            for thing in scene.objects
            if thing.shape == shape
        ]
        if not found:
            continue
        x, y, radius = torch.tensor([[o.x, o.y, o.radius] for _, o in found]).unbind(-1)
        masks = draw_masks(shape, x=x, y=y, radius=radius, height=height, width=width)
        paint_objects(pictures, found, masks)
    return pictures * 2 - 1


def draw_grounds(scenes: Sequence[Scene], *, height: int, width: int) -> Tensor:
    """Pictures [B, 3, H, W], float32 in [0, 1], of the backgrounds alone."""
    grounds = [BACKGROUNDS[scene.background] for scene in scenes]
    pictures = torch.tensor(grounds).reshape(-1, 3, 1, 1) / 255
    return pictures.repeat(1, 1, height, width)


def paint_objects(pictures: Tensor, found: Sequence[tuple[int, Object]], masks: Tensor) -> None:
    """Paints objects into pictures, in place.

    Args:
        pictures: [B, 3, H, W] in [0, 1].
        found: N objects, each with the index of its picture.
        masks: [N, H, W], where each object is.
    """
    height, width = masks.shape[-2:]
    side = min(height, width)
    rows = torch.arange(height) + 0.5 - height / 2
    indices = torch.tensor([index for index, _ in found])
    y, radius = torch.tensor([[o.y, o.radius] for _, o in found]).unbind(-1)
    depth = (rows[None, :] - (y[:, None] - 0.5) * side) / (radius[:, None] * side)
    light = (1 - SHADING * depth.clamp(-1, 1))[:, None, :, None]
    paint = torch.tensor([COLOURS[o.colour] for _, o in found])[:, :, None, None] / 255
    # Objects never overlap, so that adding what each changes is the same as painting in order;
    # index_add_, because several may stand in one picture.
    change = masks[:, None] * ((paint * light).clamp(0, 1) - pictures[indices])
    pictures.index_add_(0, indices, change)
