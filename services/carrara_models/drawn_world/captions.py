"""Captions of scenes, in English and Chinese: what is trained on, and paraphrases that never are.

It knows the languages by name, and no word of either.
"""

from typing import Literal, get_args

import numpy as np

from carrara_models.drawn_world.chinese import (
    chinese_words,
    without_chinese_colours,
    without_chinese_shapes,
    write_chinese,
)
from carrara_models.drawn_world.english import (
    english_words,
    without_english_colours,
    without_english_shapes,
    write_english,
    write_plain_english,
)
from carrara_models.drawn_world.paraphrases import paraphrase_chinese, paraphrase_english
from carrara_models.drawn_world.scenes import Scene

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

_WRITERS = {"en": write_english, "zh": write_chinese}
_PARAPHRASERS = {"en": paraphrase_english, "zh": paraphrase_chinese}
_WORDS = {"en": english_words, "zh": chinese_words}


def write_caption(
    scene: Scene, rng: np.random.Generator, *, language: Language = "en", omit: float = 0.0
) -> str:
    """One of the wordings of `scene`.

    Args:
        scene: What the caption tells.
        rng: The source of every choice.
        language: English or simplified Chinese.
        omit: Probability with which the background, the place and each size go unmentioned, in
            [0, 1); 0 makes a caption that tells everything.
    """
    return _WRITERS[language](scene, rng, omit=omit)


def write_paraphrase(scene: Scene, rng: np.random.Generator, *, language: Language = "en") -> str:
    """A wording of `scene` that tells everything and that `write_caption` never makes.

    Args:
        scene: What the caption tells.
        rng: The source of every choice.
        language: English or simplified Chinese.
    """
    return _PARAPHRASERS[language](scene, rng)


def write_plain_caption(scene: Scene) -> str:
    """One English wording of `scene`, the same for all alike: each word at its place."""
    return write_plain_english(scene)


def without_colours(caption: str) -> str:
    """`caption` without the names of colours, in either language; what it then tells holds in any.

    Args:
        caption: Of a scene; of other pictures only the drawn world's names for colours go.
    """
    return without_chinese_colours(without_english_colours(caption)).strip()


def without_shapes(caption: str) -> str:
    """`caption` without the names of shapes, in either language; what it then tells holds of any.

    Args:
        caption: Of a scene.
    """
    return without_chinese_shapes(without_english_shapes(caption))


def caption_words(language: Language = "en") -> tuple[str, ...]:
    """Every word and mark that a caption can hold, sorted."""
    return _WORDS[language]()
