"""Reads a picture of the drawn world back into attributes, and scores it against a scene.

It is exact on true pictures, bears the blur and noise of reconstructed and generated ones, and
in doubt reads nothing: what it does not recognise counts as wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from carrara_models.drawn_world.drawing import draw_masks
from carrara_models.drawn_world.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZE_RADII,
    Scene,
)

ATTRIBUTES = (
    "background",
    "colour",
    "shape",
    "size",
    "place",
    "relation",
    "object_count",
    "all_right",
)

# Distances in sRGB of [0, 255] per channel. Backgrounds are at least 60 apart and object colours
# 80; shading moves a colour by at most 8 %.
BACKGROUND_TOLERANCE = 30.0
COLOUR_TOLERANCE = 45.0
UNEXPLAINED_TOLERANCE = 70.0
# Areas as fractions of the picture. The smallest object, a small crescent, covers 3.4 %.
SMALLEST_SEED = 0.003
SMALLEST_OBJECT = 0.015
SMALLEST_OVERLAP = 0.75
# By how much the best shape's overlap has to exceed the next one's.
OVERLAP_LEAD = 0.02
RADIUS_RANGE = (0.13, 0.26)
# By how much the centre of a third object lies beyond those of the pair, as a fraction of the side:
# the least in a true picture is 0.34.
THIRD_APART = 0.2
# Between the largest small and the smallest large object.
SIZE_LIMIT = (SIZE_RADII["small"][1] + SIZE_RADII["large"][0]) / 2

Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class ReadObject:
    """One thing found in a picture; None stands for what was not recognised."""

    shape: str | None
    colour: str | None
    size: str | None
    x: float
    y: float


@dataclass(frozen=True)
class Reading:
    """What was found in a picture."""

    background: str | None
    objects: tuple[ReadObject, ...]


def read_picture(picture: NDArray[Any]) -> Reading:
    """Reads a square picture.

    Args:
        picture: uint8 [H, H, 3].
    """
    pixels = picture.astype(np.float64)
    side = len(pixels)
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(frame, axis=0)
    background = _nearest(ground, BACKGROUNDS, BACKGROUND_TOLERANCE)

    seeds = _find_seeds(pixels, ground, side)
    explained = np.broadcast_to(ground, pixels.shape).copy()
    objects = []
    if seeds:
        # Each pixel belongs to the nearest seed, so that soft edges are parted between neighbours.
        labels = np.zeros((side, side), dtype=np.int64)
        for index, (_, seed) in enumerate(seeds):
            labels[seed] = index + 1
        nearest = ndimage.distance_transform_edt(
            labels == 0, return_distances=False, return_indices=True
        )
        cells = labels[tuple(nearest)]
        for index, (colour, seed) in enumerate(seeds):
            direction = np.array(COLOURS[colour]) - ground
            coverage = (pixels - ground) @ direction / (direction @ direction)
            coverage = np.where(cells == index + 1, coverage, 0).clip(0, 1)
            # Noise far from the object would add up in its area, and crumbs are not of it.
            patches, _ = ndimage.label(coverage >= 0.1)
            coverage[~np.isin(patches, patches[seed])] = 0
            if coverage.mean() < SMALLEST_OBJECT:
                continue
            contrast = float(np.linalg.norm(direction))
            objects.append(_read_object(coverage, colour, contrast))
            explained += coverage[..., None] * direction
    differs = np.linalg.norm(pixels - explained, axis=-1) > UNEXPLAINED_TOLERANCE
    labels, count = ndimage.label(_wider_than_an_edge(differs))
    for y, x in ndimage.center_of_mass(labels > 0, labels, range(1, count + 1)):
        objects.append(ReadObject(None, None, None, float(x) / side, float(y) / side))
    return Reading(background, tuple(objects))


def score_reading(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Which attributes of `scene` the picture shows; `place` or `relation` only where it has one.

    The relation of three objects is right when the pair's is and the third stands right to both.
    Objects are matched so that most of shape, colour and size agree; with another number of
    objects than the scene's, nothing but the background can be right.
    """
    count_is_right = len(reading.objects) == len(scene.objects)
    scores = {"background": reading.background == scene.background}
    relation_name = "place" if scene.place is not None else "relation"
    if not count_is_right:
        scores |= dict.fromkeys(("colour", "shape", "size", relation_name), False)
    else:
        matched = max(permutations(reading.objects), key=lambda read: _agreement(read, scene))
        for name in ("colour", "shape", "size"):
            scores[name] = all(
                getattr(read, name) == getattr(thing, name)
                for read, thing in zip(matched, scene.objects, strict=True)
            )
        if scene.place is not None:
            scores["place"] = _place(matched[0]) == scene.place
        else:
            scores["relation"] = _relation(matched[0], matched[1]) == scene.relation and all(
                _is_beyond(matched[2], other, scene.third_relation)
                for other in matched[:2]
                if scene.third_relation is not None
            )
    scores["object_count"] = count_is_right
    scores["all_right"] = all(scores.values())
    return scores


def share_right(scores: list[dict[str, bool]]) -> dict[str, float]:
    """The share of right ones per attribute, in [0, 1], over the scenes that have it."""
    shares = {}
    for name in ATTRIBUTES:
        known = [score[name] for score in scores if name in score]
        if known:
            shares[name] = sum(known) / len(known)
    return shares


def _find_seeds(pixels: Pixels, ground: Pixels, side: int) -> list[tuple[str, NDArray[np.bool_]]]:
    """Connected patches of plain object colour."""
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], dtype=np.float64)
    distances = np.linalg.norm(pixels[:, :, None] - palette, axis=-1)  # [H, W, colours]
    distances[np.linalg.norm(pixels - ground, axis=-1) < COLOUR_TOLERANCE] = np.inf
    nearest = distances.argmin(axis=-1)
    is_plain = distances.min(axis=-1) < COLOUR_TOLERANCE
    seeds = []
    for index, name in enumerate(names):
        labels, count = ndimage.label(is_plain & (nearest == index))
        for label in range(1, count + 1):
            patch = labels == label
            if patch.sum() >= SMALLEST_SEED * side**2:
                seeds.append((name, patch))
    return seeds


def _read_object(coverage: Pixels, colour: str, contrast: float) -> ReadObject:
    """Finds the shape whose mask, laid over by area and centroid, overlaps best.

    A dent or bulge that shows leaves the shape unrecognised, however well the rest overlaps.
    """
    side = len(coverage)
    area = coverage.sum()
    rows, columns = np.indices(coverage.shape) + 0.5
    centroid_x = (coverage * columns).sum() / area / side
    centroid_y = (coverage * rows).sum() / area / side
    overlaps, candidates = [], []
    for shape in SHAPES:
        unit_area, unit_x, unit_y = _unit_moments(shape)
        radius = float(np.sqrt(area / unit_area)) / side
        x, y = centroid_x - unit_x * radius, centroid_y - unit_y * radius
        mask = _mask(shape, x, y, radius, side)
        overlaps.append(np.minimum(mask, coverage).sum() / np.maximum(mask, coverage).sum())
        candidates.append((radius, x, y, mask))
    order = np.argsort(overlaps)
    best, second = order[-1], order[-2]
    radius, x, y, mask = candidates[best]
    deviates = np.abs(mask - coverage) * contrast > UNEXPLAINED_TOLERANCE
    is_clear = (
        overlaps[best] >= SMALLEST_OVERLAP
        and overlaps[best] - overlaps[second] >= OVERLAP_LEAD
        and not _wider_than_an_edge(deviates).any()
    )
    size = None
    if RADIUS_RANGE[0] <= radius <= RADIUS_RANGE[1]:
        size = "small" if radius < SIZE_LIMIT else "large"
    return ReadObject(SHAPES[best] if is_clear else None, colour, size, x, y)


def _wider_than_an_edge(pixels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Leaves patches that hold a square of 3 pixels (at a side of 64), and nothing narrower."""
    width = max(3, round(3 * len(pixels) / 64))
    return ndimage.binary_opening(pixels, np.ones((width, width)))


@cache
def _unit_moments(shape: str) -> tuple[float, float, float]:
    """Area and centroid (x, y) of a shape of radius 1, centre at the origin."""
    resolution, radius = 512, 0.4
    mask = _mask(shape, 0.5, 0.5, radius, resolution)
    unit = radius * resolution
    rows, columns = np.indices(mask.shape) + 0.5 - resolution / 2
    area = mask.sum()
    return (
        float(area) / unit**2,
        float((mask * columns).sum() / area) / unit,
        float((mask * rows).sum() / area) / unit,
    )


def _mask(shape: str, x: float, y: float, radius: float, side: int) -> Pixels:
    place = {"x": torch.tensor([x]), "y": torch.tensor([y]), "radius": torch.tensor([radius])}
    masks = draw_masks(shape, **{k: v.float() for k, v in place.items()}, height=side, width=side)
    return masks[0].double().numpy()


def _nearest(
    value: Pixels, palette: Mapping[str, tuple[int, int, int]], tolerance: float
) -> str | None:
    distances = {name: float(np.linalg.norm(value - paint)) for name, paint in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= tolerance else None


def _agreement(read: tuple[ReadObject, ...], scene: Scene) -> int:
    return sum(
        getattr(found, name) == getattr(thing, name)
        for found, thing in zip(read, scene.objects, strict=True)
        for name in ("colour", "shape", "size")
    )


def _place(thing: ReadObject) -> str:
    return min(
        PLACES,
        key=lambda place: (PLACES[place][0] - thing.x) ** 2 + (PLACES[place][1] - thing.y) ** 2,
    )


def _relation(first: ReadObject, second: ReadObject) -> str:
    right, down = second.x - first.x, second.y - first.y
    if abs(right) > abs(down):
        return "left of" if right > 0 else "right of"
    return "above" if down > 0 else "below"


def _is_beyond(third: ReadObject, other: ReadObject, relation: str) -> bool:
    right, down = other.x - third.x, other.y - third.y
    apart = {"left of": right, "right of": -right, "above": down, "below": -down}[relation]
    return apart >= THIRD_APART
