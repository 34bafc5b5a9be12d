"""Scenes of the drawn world: what can stand in a picture, and how scenes are sampled.

It knows no pixels and no words beyond the attribute names.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent")

# sRGB in [0, 255]. Any two entries of both tables are at least 60 apart, two colours 80.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 135, 25),
    "yellow": (250, 215, 40),
    "green": (45, 160, 65),
    "cyan": (45, 200, 215),
    "blue": (45, 85, 215),
    "purple": (150, 50, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (22, 22, 24),
    "grey": (128, 128, 128),
    "pink": (245, 175, 195),
    "brown": (110, 70, 45),
    "navy": (24, 34, 96),
}

# Radii as fractions of the side: half the side of the box that holds the shape.
SIZE_RADII = {"small": (0.155, 0.168), "large": (0.215, 0.230)}
MARGIN = 0.015
GAP = 0.03

# Centre of each place, (x, y) as fractions of the side; y counts downwards.
PLACES = {
    "top left": (0.25, 0.25),
    "top": (0.5, 0.25),
    "top right": (0.75, 0.25),
    "left": (0.25, 0.5),
    "centre": (0.5, 0.5),
    "right": (0.75, 0.5),
    "bottom left": (0.25, 0.75),
    "bottom": (0.5, 0.75),
    "bottom right": (0.75, 0.75),
}
PLACE_JITTER = 0.03
# Where one of two objects may stand across the axis of their relation, around the middle.
ACROSS_JITTER = 0.12

# How one stands to the other, and how the other stands to the one.
INVERSE_RELATIONS = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
RELATIONS = tuple(INVERSE_RELATIONS)


def _held_out_pairs() -> frozenset[tuple[str, str]]:
    """One colour of each shape, the one whose hash is the smallest: 8 of the 56 pairs.

    A hash, so that the choice can be neither tuned nor drift; one per shape, so that every shape
    is scored and still trained in the other six colours.
    """

    def digest(shape: str, colour: str) -> bytes:
        return hashlib.sha256(f"carrara drawn world: {colour} {shape}".encode()).digest()

    return frozenset(
        (shape, min(COLOURS, key=lambda colour: digest(shape, colour))) for shape in SHAPES
    )


HELD_OUT_PAIRS = _held_out_pairs()
ALL_PAIRS = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
Split = Literal["train", "heldout"]
PAIRS: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT_PAIRS),
    "heldout": tuple(pair for pair in ALL_PAIRS if pair in HELD_OUT_PAIRS),
}


@dataclass(frozen=True)
class Object:
    """One object; `x`, `y` (centre, y downwards) and `radius` are fractions of the side."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """One object at a place, or two objects of which the first stands in a relation to the second.

    The relation of a sampled scene is "left of" or "above": wordings reverse it, scenes need not.
    """

    background: str
    objects: tuple[Object, ...]
    place: str | None = None
    relation: str | None = None


def sample_scene(
    rng: np.random.Generator,
    *,
    split: Split = "train",
    two_objects: bool | None = None,
) -> Scene:
    """Samples a scene whose pairs of shape and colour all belong to `split`.

    Two objects never share a colour, so that "the red one" is always one object.

    Args:
        rng: The source of every choice.
        split: `train` takes none of `HELD_OUT_PAIRS`, `heldout` takes nothing else.
        two_objects: Whether two objects stand in the scene; drawn (2 of 3 scenes) when None.
    """
    if two_objects is None:
        two_objects = rng.random() < 2 / 3
    background = str(rng.choice(tuple(BACKGROUNDS)))
    pairs = PAIRS[split]
    first = pairs[rng.integers(len(pairs))]
    if not two_objects:
        size, radius = _sample_size(rng)
        place = str(rng.choice(tuple(PLACES)))
        x, y = (
            _inside(centre + rng.uniform(-PLACE_JITTER, PLACE_JITTER), radius)
            for centre in PLACES[place]
        )
        return Scene(background, (Object(*first, size, x, y, radius),), place=place)

    others = [pair for pair in pairs if pair[1] != first[1]]
    second = others[rng.integers(len(others))]
    relation = str(rng.choice(("left of", "above")))
    (size_1, radius_1), (size_2, radius_2) = _sample_size(rng), _sample_size(rng)
    # Along the axis: margin, first box, gap, second box, margin; the rest is spread at random.
    slack = 1 - 2 * MARGIN - GAP - 2 * radius_1 - 2 * radius_2
    before, between = np.sort(rng.uniform(0, slack, size=2))
    along_1 = MARGIN + before + radius_1
    along_2 = along_1 + radius_1 + GAP + (between - before) + radius_2
    across_1, across_2 = (
        _inside(0.5 + rng.uniform(-ACROSS_JITTER, ACROSS_JITTER), radius)
        for radius in (radius_1, radius_2)
    )
    if relation == "left of":
        centres = (along_1, across_1), (along_2, across_2)
    else:
        centres = (across_1, along_1), (across_2, along_2)
    objects = (
        Object(*first, size_1, float(centres[0][0]), float(centres[0][1]), radius_1),
        Object(*second, size_2, float(centres[1][0]), float(centres[1][1]), radius_2),
    )
    return Scene(background, objects, relation=relation)


def _sample_size(rng: np.random.Generator) -> tuple[str, float]:
    size = str(rng.choice(tuple(SIZE_RADII)))
    return size, float(rng.uniform(*SIZE_RADII[size]))


def _inside(coordinate: float, radius: float) -> float:
    return float(np.clip(coordinate, radius + MARGIN, 1 - radius - MARGIN))
