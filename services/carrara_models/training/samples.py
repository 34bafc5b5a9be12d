"""Which captions a run paints to look at, and what the pictures score where they can be scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import Scene
from carrara_models.evaluation.attributes import CaptionKind, held_out_captions, score_pictures
from carrara_models.training.data.examples import Source
from carrara_models.training.data.settings import DataSettings
from carrara_models.training.errors import RecipeError
from carrara_models.training.loop import Samples

SHOWN = 32
# Below that the drawn world's checker cannot tell the shapes of true pictures.
READABLE_SIDE = 64


@dataclass(frozen=True)
class SampleSettings:
    """How sample pictures are painted; changes no weight."""

    prompts: tuple[str, ...] = ()
    """What is painted; where empty, held-out captions of the drawn world, or the data's first."""
    count: int = 48
    """How many captions, where there are no prompts; 0 paints none."""
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.count < 0:
            raise RecipeError(f"samples.count is {self.count}; allowed: 0 and up")


@dataclass(frozen=True)
class SampleCaptions:
    """What is painted.

    Attributes:
        name: Tells these from others of one run; empty where there is nothing to tell apart.
        scenes: One for each caption, where the captions tell scenes.
    """

    name: str
    captions: list[str]
    scenes: list[Scene] | None = None
    pictures: Tensor | None = None
    """Of the data, [N, 3, H, W] in [-1, 1], where there are no scenes."""

    def true_pictures(self, side: int) -> Tensor:
        """What the captions tell, [N, 3, side, side] in [-1, 1].

        Raises:
            RecipeError: They are prompts, of which nobody has a picture.
        """
        if self.scenes is not None:
            return draw_scenes(self.scenes, height=side, width=side)
        if self.pictures is None:
            raise RecipeError("samples.prompts have no pictures to take embeddings of")
        return self.pictures

    def samples(self, pictures: NDArray[np.uint8]) -> Samples:
        """The first pictures, and the share of right attributes of all.

        Args:
            pictures: uint8 [N, H, W, 3], one for each caption.
        """
        scalars: dict[str, float] = {}
        if self.scenes is not None:
            suffix = f"_{self.name}" if self.name else ""
            shares = score_pictures(readable(pictures), self.scenes)
            scalars = {f"{name}{suffix}": share for name, share in shares.items()}
        return Samples(scalars, {self.name: pictures[:SHOWN]})


def sample_captions(
    settings: SampleSettings, data: DataSettings, source: Source
) -> list[SampleCaptions]:
    """What a run paints; of the drawn world, each language's share of the captions by itself."""
    if settings.prompts:
        return [SampleCaptions("", list(settings.prompts))]
    if not settings.count:
        return []
    if not data.is_drawn:
        examples = source.examples(range(settings.count))
        return [SampleCaptions("", examples.captions, pictures=examples.pixels)]
    found = []
    for index, language in enumerate(data.languages):
        count = len(range(index, settings.count, len(data.languages)))
        if count:
            kind = CaptionKind(language=language, max_objects=data.max_objects)
            scenes, captions = held_out_captions(count, seed=1, kind=kind)
            name = language if len(data.languages) > 1 else ""
            found.append(SampleCaptions(name, captions, scenes))
    return found


def join(samples: Sequence[Samples]) -> Samples:
    """All scalars and pictures of several."""
    return Samples(
        {name: value for each in samples for name, value in each.scalars.items()},
        {name: value for each in samples for name, value in each.pictures.items()},
    )


def readable(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures, uint8 [N, H, W, 3], large enough for the drawn world's checker."""
    side = pictures.shape[1]
    if side >= READABLE_SIDE:
        return pictures
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    larger = F.interpolate(pixels, scale_factor=-(-READABLE_SIDE // side) * 2, mode="bicubic")
    return larger.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
