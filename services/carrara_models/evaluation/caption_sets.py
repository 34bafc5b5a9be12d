"""Captions to paint, and the true pictures that what is painted of them is held against.

It knows no model and no measure.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import Scene, sample_scene
from carrara_models.errors import BadFieldError, CheckpointError
from carrara_models.evaluation.attributes import CaptionKind, held_out_captions
from carrara_models.pixels import batch_to_uint8
from carrara_models.training.data.picture_folder import PICTURE_SUFFIXES, open_folder
from carrara_models.training.data.pictures import Framing

DRAWN_AT_ONCE = 256  # pictures, to bound the memory that drawing takes
# Beside a seed, for scenes other than those that are painted.
OTHER_SCENES = 1
CAPTIONS_ALONE = Framing(height=1, width=1)

Pictures = NDArray[np.uint8]
Draw = Callable[[int, int], Pictures]
"""Height and width in pixels to pictures uint8 [N, height, width, 3]."""


@dataclass(frozen=True, eq=False)
class CaptionSet:
    """N captions.

    Attributes:
        data: Which pictures `draw_reference` draws, in words.
        told: What a report says of the captions.
        scenes: What each caption tells; empty where that is unknown.
        draw_true: Pictures of these very captions; None where there are none.
        draw_reference: N pictures to compare with; None likewise.
        warnings: What a reader of the numbers must know.
    """

    captions: tuple[str, ...]
    data: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)
    scenes: tuple[Scene, ...] = ()
    draw_true: Draw | None = None
    draw_reference: Draw | None = None
    warnings: tuple[str, ...] = ()


def drawn_captions(count: int, *, seed: int, kind: CaptionKind) -> CaptionSet:
    """Captions of held-out scenes of the drawn world, and for reference as many other scenes.

    The other scenes are drawn as these are and independently of them, so that both are of one
    distribution; there are so few scenes of one object that some occur in both.
    """
    scenes, captions = held_out_captions(count, seed=seed, kind=kind)
    rng = np.random.default_rng((seed, count, OTHER_SCENES))
    others = [
        sample_scene(rng, split="heldout", max_objects=kind.max_objects) for _ in range(count)
    ]
    return CaptionSet(
        captions=tuple(captions),
        data=f"drawn world, held-out scenes of up to {kind.max_objects} objects, seed {seed}",
        told={"split": "heldout", "captions": count, "caption_kind": asdict(kind)},
        scenes=tuple(scenes),
        draw_true=partial(_draw, scenes),
        draw_reference=partial(_draw, others),
    )


def read_prompts(file: Path, *, count: int | None = None) -> CaptionSet:
    """Captions alone, one a line.

    Args:
        file: UTF-8; empty lines are left out.
        count: How many, from the first on; None for all.

    Raises:
        CheckpointError: It cannot be read.
        BadFieldError: It has fewer.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    captions = [line.strip() for line in lines if line.strip()]
    count = _checked_count(count, len(captions), f"the captions in {file}")
    return CaptionSet(captions=tuple(captions[:count]), told={"captions": count})


def read_picture_folder(folder: Path, *, count: int | None = None, seed: int) -> CaptionSet:
    """Captions of a folder of pictures, as training reads it; the pictures are the reference.

    Args:
        folder: See `carrara_models.training.data.picture_folder`.
        count: How many, drawn from the folder; None for all.
        seed: Chooses which ones, and the caption of each that has several.

    Raises:
        DataError: No picture can be used.
        BadFieldError: There are fewer.
    """
    stored = sum(path.suffix.lower() in PICTURE_SUFFIXES for path in folder.rglob("*"))
    count = _checked_count(count, stored, f"the pictures in {folder}")

    def draw(height: int, width: int) -> Pictures:
        source = open_folder(folder, framing=Framing(height=height, width=width), seed=seed)
        return batch_to_uint8(source.examples(range(count)).pixels)

    examples = open_folder(folder, framing=CAPTIONS_ALONE, seed=seed).examples(range(count))
    skipped = ", ".join(f"{number} {reason}" for reason, number in examples.skipped.most_common())
    return CaptionSet(
        captions=tuple(examples.captions),
        data=f"{folder.name}, seed {seed}",
        told={"captions": count},
        draw_true=draw,
        draw_reference=draw,
        warnings=(f"pictures of {folder} for which others stand in: {skipped}",) if skipped else (),
    )


def _draw(scenes: list[Scene], height: int, width: int) -> Pictures:
    return np.concatenate(
        [
            batch_to_uint8(
                draw_scenes(scenes[start : start + DRAWN_AT_ONCE], height=height, width=width)
            )
            for start in range(0, len(scenes), DRAWN_AT_ONCE)
        ]
    )


def _checked_count(wanted: int | None, there: int, what: str) -> int:
    count = there if wanted is None else wanted
    if not 2 <= count <= there:
        raise BadFieldError("captions", count, f"2 to {there}, {what}")
    return count
