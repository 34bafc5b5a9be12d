"""Captions in English: a grammar with varied wording.

It knows nothing of pixels or tokens.
"""

import re
from collections.abc import Mapping
from typing import cast

import numpy as np

from carrara_models.drawn_world.scenes import INVERSE_RELATIONS, Object, Scene

# The first wording of each is the plain one.
SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus"),
    "heart": ("heart",),
    "crescent": ("crescent", "moon"),
}
COLOUR_WORDS = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
}
SIZE_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big")}
BACKGROUND_WORDS = {
    "white": ("white",),
    "black": ("black",),
    "grey": ("grey", "gray"),
    "pink": ("pink",),
    "brown": ("brown",),
    "navy": ("navy", "dark blue"),
}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
PLACE_WORDS = {
    "top left": ("in the top left", "at the top left", "in the upper left corner"),
    "top": ("at the top", "at the top centre"),
    "top right": ("in the top right", "at the top right", "in the upper right corner"),
    "left": ("on the left", "at the left"),
    "centre": ("in the centre", "in the middle", "in the center"),
    "right": ("on the right", "at the right"),
    "bottom left": ("in the bottom left", "at the bottom left", "in the lower left corner"),
    "bottom": ("at the bottom", "at the bottom centre"),
    "bottom right": ("in the bottom right", "at the bottom right", "in the lower right corner"),
}


def write_english(scene: Scene, rng: np.random.Generator, *, omit: float = 0.0) -> str:
    """One of the wordings of `scene`.

    Args:
        scene: What the caption tells.
        rng: The source of every choice.
        omit: Probability with which the background, the place and each size go unmentioned, in
            [0, 1); 0 makes a caption that tells everything.
    """
    background = pick(BACKGROUND_WORDS[scene.background], rng)
    ground = pick((f"on a {background} background", f"on {background}"), rng)
    if len(scene.objects) == 1:
        assert scene.place is not None
        subject = name_object(scene.objects[0], rng, omit=omit)
        if rng.random() >= omit:
            subject += " " + pick(PLACE_WORDS[scene.place], rng)
    elif len(scene.objects) == 2:
        subject = _tell_pair(scene, rng, omit)
    else:
        subject = _tell_three(scene, rng, omit)
    if rng.random() < omit:
        return subject
    return pick((f"{subject} {ground}", f"{subject} {ground}", f"{ground}, {subject}"), rng)


def write_plain_english(scene: Scene) -> str:
    """The wording of `scene` that takes the first of all choices and tells everything."""
    return write_english(scene, cast(np.random.Generator, _First()))


class _First:
    """Stands for a source of choices that always makes the first."""

    def integers(self, count: int) -> int:
        return 0

    def random(self) -> float:
        return 1.0  # nothing is left out or turned round


def without_english_colours(caption: str) -> str:
    """`caption` without the names of colours; what stood around one is left as it is."""
    return _COLOUR.sub(lambda name: f"{name[1]} " if name[1] else "", caption)


def without_english_shapes(caption: str) -> str:
    """`caption` without the names of shapes."""
    return _SHAPE.sub("", caption)


def any_of(*tables: Mapping[str, tuple[str, ...]]) -> str:
    """A pattern of all wordings in tables, the longest first: a dark blue is no blue of its own."""
    wordings = (words for table in tables for each in table.values() for words in each)
    return "|".join(sorted(wordings, key=len, reverse=True))


def name_object(thing: Object, rng: np.random.Generator, *, omit: float = 0.0) -> str:
    """What an object is called, with its article."""
    words = [pick(COLOUR_WORDS[thing.colour], rng), pick(SHAPE_WORDS[thing.shape], rng)]
    if rng.random() >= omit:
        words.insert(0, pick(SIZE_WORDS[thing.size], rng))
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def name_relation(relation: str, rng: np.random.Generator) -> str:
    """What stands between the two objects of a relation."""
    return pick(RELATION_WORDS[relation], rng)


def pick(wordings: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of several wordings, each as likely as any other."""
    return wordings[rng.integers(len(wordings))]


def english_words() -> tuple[str, ...]:
    """Every word and mark that a caption can hold, sorted."""
    tables = (
        SHAPE_WORDS,
        COLOUR_WORDS,
        SIZE_WORDS,
        BACKGROUND_WORDS,
        RELATION_WORDS,
        PLACE_WORDS,
    )
    phrases = [words for table in tables for wordings in table.values() for words in wordings]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()} | set(_GLUE)))


_SHAPE = re.compile(rf" \b(?:{any_of(SHAPE_WORDS)})\b")
# With its article, which would tell an orange and a shape that begins with a vowel.
_COLOUR = re.compile(rf"\b(?:(a)n )?\b(?:{any_of(COLOUR_WORDS, BACKGROUND_WORDS)})\b ?")

_GLUE = ("a", "an", "on", "background", ",", "and", "with", "them", "both", "are", "one", "the")


def _tell_pair(scene: Scene, rng: np.random.Generator, omit: float) -> str:
    assert scene.relation is not None
    first, second = (name_object(thing, rng, omit=omit) for thing in scene.objects[:2])
    relation = scene.relation
    if rng.random() < 0.5:
        first, second, relation = second, first, INVERSE_RELATIONS[relation]
    return f"{first} {name_relation(relation, rng)} {second}"


def _tell_three(scene: Scene, rng: np.random.Generator, omit: float) -> str:
    assert scene.relation is not None
    assert scene.third_relation is not None
    third = name_object(scene.objects[2], rng, omit=omit)
    beside = name_relation(scene.third_relation, rng)
    opposite = name_relation(INVERSE_RELATIONS[scene.third_relation], rng)
    wording = rng.integers(5)
    if wording < 3:
        pair = _tell_pair(scene, rng, omit)
        return (
            f"{pair}, and {third} {beside} {pick(('them', 'both'), rng)}",
            f"{pair}, with {third} {beside} {pick(('them', 'both'), rng)}",
            f"{pair}, {pick(('both', 'both are'), rng)} {opposite} {third}",
        )[wording]
    one, other = scene.objects[:2]
    relation = scene.relation
    if rng.random() < 0.5:
        one, other, relation = other, one, INVERSE_RELATIONS[relation]
    pair = f"{name_object(one, rng, omit=omit)} and {name_object(other, rng, omit=omit)}"
    order = (
        f"the {pick(COLOUR_WORDS[one.colour], rng)} one {name_relation(relation, rng)} "
        f"the {pick(COLOUR_WORDS[other.colour], rng)} one"
    )
    if wording == 3:
        return f"{third} {beside} {pair}, {order}"
    return f"{pair} {opposite} {third}, {order}"
