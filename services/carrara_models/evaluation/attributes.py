"""Captions of held-out scenes, and which of their attributes pictures show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara_models.drawn_world.captions import Language, write_caption, write_paraphrase
from carrara_models.drawn_world.checker import Reading, read_picture, score_reading, share_right
from carrara_models.drawn_world.scenes import Scene, sample_scene


@dataclass(frozen=True)
class CaptionKind:
    """Which captions a model is scored on.

    Attributes:
        language: English or simplified Chinese.
        max_objects: The largest number of objects in a scene.
        paraphrases: Whether they are worded as no caption that is trained on.
    """

    language: Language = "en"
    max_objects: int = 2
    paraphrases: bool = False


def held_out_captions(
    count: int, *, seed: int, kind: CaptionKind = CaptionKind()
) -> tuple[list[Scene], list[str]]:
    """Scenes of held-out pairs alone, each with one caption that tells everything."""
    rng = np.random.default_rng((seed, count))
    scenes = [
        sample_scene(rng, split="heldout", max_objects=kind.max_objects) for _ in range(count)
    ]
    write = write_paraphrase if kind.paraphrases else write_caption
    return scenes, [write(scene, rng, language=kind.language) for scene in scenes]


def score_pictures(pictures: NDArray[Any], scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of right attributes, in [0, 1].

    Args:
        pictures: uint8 [N, H, H, 3].
        scenes: N scenes, one for each picture.
    """
    return share_right(score_readings(read_pictures(pictures), scenes))


def read_pictures(pictures: NDArray[Any]) -> list[Reading]:
    """What the checker finds in each of pictures uint8 [N, H, H, 3]."""
    return [read_picture(picture) for picture in pictures]


def score_readings(readings: Sequence[Reading], scenes: Sequence[Scene]) -> list[dict[str, bool]]:
    """Which attributes of its scene each of N pictures shows."""
    return [score_reading(reading, scene) for reading, scene in zip(readings, scenes, strict=True)]
