"""Scores a checkpoint on captions of held-out scenes, attribute by attribute."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from carrara_models.drawn_world.captions import Language, write_caption, write_paraphrase
from carrara_models.drawn_world.checker import read_picture, score_reading, share_right
from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import Scene, sample_scene
from carrara_models.evaluation.painting import PaintSettings, paint, round_trip, to_uint8


@dataclass(frozen=True)
class AttributeScore:
    """Shares of right pictures, in [0, 1].

    Attributes:
        score: Of the pictures painted.
        floor: Of the same pictures against the captions of others.
        ceiling: Of the true pictures, taken through the autoencoder and back.
    """

    score: float
    floor: float
    ceiling: float


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
        pictures: uint8 [N, H, W, 3].
        scenes: N scenes, one for each picture.
    """
    return share_right(
        [
            score_reading(read_picture(picture), scene)
            for picture, scene in zip(pictures, scenes, strict=True)
        ]
    )


def evaluate_attributes(
    pipeline: StableDiffusionPipeline,
    *,
    captions: int,
    seed: int,
    painting: PaintSettings,
    kind: CaptionKind = CaptionKind(),
) -> dict[str, AttributeScore]:
    """Scores of a pipeline on held-out captions, by attribute.

    Args:
        pipeline: On the CPU, float32.
        captions: How many; at least 2, so that there are others to score the floor against.
        seed: Chooses scenes, wordings and the captions of the floor.
        painting: How the pictures are painted.
        kind: Their language, wording and largest number of objects.
    """
    scenes, texts = held_out_captions(captions, seed=seed, kind=kind)
    painted = paint(pipeline, texts, painting)
    # A rotation: no picture keeps its caption.
    shift = int(np.random.default_rng(seed).integers(1, captions))
    others = scenes[shift:] + scenes[:shift]
    true_pictures = draw_scenes(scenes, height=painted.shape[1], width=painted.shape[2])
    rebuilt = to_uint8(round_trip(pipeline.vae, true_pictures))
    score = score_pictures(painted, scenes)
    floor = score_pictures(painted, others)
    ceiling = score_pictures(rebuilt, scenes)
    return {name: AttributeScore(score[name], floor[name], ceiling[name]) for name in score}
