"""Captions of scenes: a grammar with varied wording.

It knows nothing of pixels or tokens.
"""

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


def write_caption(scene: Scene, rng: np.random.Generator, *, omit: float = 0.0) -> str:
    """One of the wordings of `scene`.

    Args:
        scene: What the caption tells.
        rng: The source of every choice.
        omit: Probability with which the background, the place and each size go unmentioned, in
            [0, 1); 0 makes a caption that tells everything.
    """
    background = _pick(BACKGROUND_WORDS[scene.background], rng)
    ground = _pick((f"on a {background} background", f"on {background}"), rng)
    if len(scene.objects) == 1:
        assert scene.place is not None
        subject = _name(scene.objects[0], rng, omit)
        if rng.random() >= omit:
            subject += " " + _pick(PLACE_WORDS[scene.place], rng)
    else:
        assert scene.relation is not None
        first, second = (_name(thing, rng, omit) for thing in scene.objects)
        relation = scene.relation
        if rng.random() < 0.5:
            first, second, relation = second, first, INVERSE_RELATIONS[relation]
        subject = f"{first} {_pick(RELATION_WORDS[relation], rng)} {second}"
    if rng.random() < omit:
        return subject
    return _pick((f"{subject} {ground}", f"{subject} {ground}", f"{ground}, {subject}"), rng)


def caption_words() -> tuple[str, ...]:
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


_GLUE = ("a", "an", "on", "background", ",")


def _name(thing: Object, rng: np.random.Generator, omit: float) -> str:
    words = [_pick(COLOUR_WORDS[thing.colour], rng), _pick(SHAPE_WORDS[thing.shape], rng)]
    if rng.random() >= omit:
        words.insert(0, _pick(SIZE_WORDS[thing.size], rng))
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _pick(wordings: tuple[str, ...], rng: np.random.Generator) -> str:
    return wordings[rng.integers(len(wordings))]
