"""Scores pictures against captions of held-out scenes, attribute by attribute."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara_models.drawn_world.captions import write_caption
from carrara_models.drawn_world.checker import read_picture, score_reading, share_right
from carrara_models.drawn_world.scenes import Scene, sample_scene


def held_out_captions(count: int, *, seed: int) -> tuple[list[Scene], list[str]]:
    """Scenes of held-out pairs alone, each with one caption that tells everything."""
    rng = np.random.default_rng((seed, count))
    scenes = [sample_scene(rng, split="heldout") for _ in range(count)]
    return scenes, [write_caption(scene, rng) for scene in scenes]


def score_pictures(pictures: NDArray[Any], scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of right attributes, in [0, 1].

    Args:
        pictures: uint8 [N, H, W, 3].
        scenes: N scenes, one for each picture.
    """
    return share_right(
        [
            score_reading(read_picture(picture), scene)
            for picture, scene in zip(pictures, scenes, strict=True)
        ]
    )
