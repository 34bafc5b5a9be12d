"""Scenes of the drawn world: what can stand in a picture, and how scenes are sampled.

It knows no pixels and no words beyond the attribute names.
"""

import hashlib
from collections.abc import Sequence
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
# Where one of two objects may stand across the axis of their relation, and a third one along it,
# around the middle.
ACROSS_JITTER = 0.12

# How one stands to the other, and how the other stands to the one.
INVERSE_RELATIONS = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
RELATIONS = tuple(INVERSE_RELATIONS)
# Where a third object may stand to a pair.
ACROSS_RELATIONS = {"left of": ("above", "below"), "above": ("left of", "right of")}
# Three do not fit in a row, and four not apart.
MAX_OBJECTS = 3


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
    """One object at a place, or a pair, or a pair and a third object beside it.

    The first object of a pair stands in `relation` to the second. The relation of a sampled scene
    is "left of" or "above": wordings reverse it, scenes need not. A third object stands in
    `third_relation` to both of the pair, across its axis: above or below a row, left or right of a
    column.
    """

    background: str
    objects: tuple[Object, ...]
    place: str | None = None
    relation: str | None = None
    third_relation: str | None = None


def sample_scene(
    rng: np.random.Generator,
    *,
    split: Split = "train",
    object_count: int | None = None,
    max_objects: int = 2,
    even_colours: bool = False,
) -> Scene:
    """Samples a scene whose pairs of shape and colour all belong to `split`.

    Objects of a scene never share a colour, so that "the red one" is always one object.

    Args:
        rng: The source of every choice.
        split: `train` takes none of `HELD_OUT_PAIRS`, `heldout` takes nothing else.
        object_count: How many objects stand in the scene, 1 to 3; drawn when None.
        max_objects: The largest number that is drawn: with 2, two objects stand in 2 of 3 scenes;
            with 3, each number in 1 of 3.
        even_colours: Makes each colour as likely as any other. Otherwise each pair is, and a colour
            that is held out with three shapes is rarer in training than the others.
    """
    if object_count is None:
        object_count = _draw_count(rng, max_objects)
    background = str(rng.choice(tuple(BACKGROUNDS)))
    pairs = PAIRS[split]
    first = _draw_pair(rng, pairs, even_colours)
    if object_count == 1:
        size, radius = _sample_size(rng)
        place = str(rng.choice(tuple(PLACES)))
        x, y = (
            _inside(centre + rng.uniform(-PLACE_JITTER, PLACE_JITTER), radius)
            for centre in PLACES[place]
        )
        return Scene(background, (Object(*first, size, x, y, radius),), place=place)

    others = [pair for pair in pairs if pair[1] != first[1]]
    second = _draw_pair(rng, others, even_colours)
    relation = str(rng.choice(("left of", "above")))
    (size_1, radius_1), (size_2, radius_2) = _sample_size(rng), _sample_size(rng)
    along_1, along_2 = _spread(rng, radius_1, radius_2)
    if object_count == 2:
        across_1, across_2 = (_near_middle(rng, radius) for radius in (radius_1, radius_2))
        return Scene(
            background,
            (
                Object(*first, size_1, *_turn(relation, along_1, across_1), radius_1),
                Object(*second, size_2, *_turn(relation, along_2, across_2), radius_2),
            ),
            relation=relation,
        )

    others = [pair for pair in others if pair[1] != second[1]]
    third = _draw_pair(rng, others, even_colours)
    third_relation = str(rng.choice(ACROSS_RELATIONS[relation]))
    size_3, radius_3 = _sample_size(rng)
    # Across the axis the pair shares one band, as wide as the larger of the two.
    half_band = max(radius_1, radius_2)
    across_3, band = _spread(rng, radius_3, half_band)
    across_1, across_2 = (
        band + rng.uniform(-1, 1) * (half_band - radius) for radius in (radius_1, radius_2)
    )
    along_3 = _near_middle(rng, radius_3)
    if third_relation in ("below", "right of"):
        across_1, across_2, across_3 = 1 - across_1, 1 - across_2, 1 - across_3
    return Scene(
        background,
        (
            Object(*first, size_1, *_turn(relation, along_1, across_1), radius_1),
            Object(*second, size_2, *_turn(relation, along_2, across_2), radius_2),
            Object(*third, size_3, *_turn(relation, along_3, across_3), radius_3),
        ),
        relation=relation,
        third_relation=third_relation,
    )


def _draw_count(rng: np.random.Generator, max_objects: int) -> int:
    if max_objects == 1:
        return 1
    if max_objects == 2:
        return 2 if rng.random() < 2 / 3 else 1
    if max_objects == MAX_OBJECTS:
        return int(rng.integers(1, MAX_OBJECTS + 1))
    raise ValueError(f"max_objects is {max_objects}; it is 1 to {MAX_OBJECTS}")


def _draw_pair(
    rng: np.random.Generator, pairs: Sequence[tuple[str, str]], even_colours: bool
) -> tuple[str, str]:
    if even_colours:
        colours = sorted({colour for _, colour in pairs})
        drawn = colours[rng.integers(len(colours))]
        pairs = [pair for pair in pairs if pair[1] == drawn]
    return pairs[rng.integers(len(pairs))]


def _spread(rng: np.random.Generator, radius_1: float, radius_2: float) -> tuple[float, float]:
    """Two centres along one axis, apart by at least `GAP`, the first one before the second.

    Margin, first box, gap, second box, margin; what is left is spread at random.
    """
    slack = 1 - 2 * MARGIN - GAP - 2 * radius_1 - 2 * radius_2
    before, between = np.sort(rng.uniform(0, slack, size=2))
    along_1 = MARGIN + before + radius_1
    along_2 = along_1 + radius_1 + GAP + (between - before) + radius_2
    return float(along_1), float(along_2)


def _near_middle(rng: np.random.Generator, radius: float) -> float:
    return _inside(0.5 + rng.uniform(-ACROSS_JITTER, ACROSS_JITTER), radius)


def _turn(relation: str, along: float, across: float) -> tuple[float, float]:
    """(x, y) of what lies at `along` on the axis of `relation`."""
    return (along, across) if relation == "left of" else (across, along)


def _sample_size(rng: np.random.Generator) -> tuple[str, float]:
    size = str(rng.choice(tuple(SIZE_RADII)))
    return size, float(rng.uniform(*SIZE_RADII[size]))


def _inside(coordinate: float, radius: float) -> float:
    return float(np.clip(coordinate, radius + MARGIN, 1 - radius - MARGIN))
