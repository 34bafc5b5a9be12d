"""Pictures for trainers, painted with diffusers' own pipeline.

In batches, one random generator per picture. `carrara evaluate` paints through the SDK instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from carrara_models.pixels import painted_to_uint8


@dataclass(frozen=True)
class PaintSettings:
    """How pictures are painted."""

    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    seed: int = 0
    """Picture i is painted with seed + i."""
    batch_size: int = 16


def paint(
    pipeline: StableDiffusionPipeline, captions: Sequence[str], settings: PaintSettings
) -> NDArray[np.uint8]:
    """Pictures [N, H, W, 3], uint8, in the checkpoint's own size, one per caption."""
    pipeline.set_progress_bar_config(disable=True)
    batches = []
    for start in range(0, len(captions), settings.batch_size):
        batch = list(captions[start : start + settings.batch_size])
        painted = pipeline(
            batch,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            generator=[
                torch.Generator().manual_seed(settings.seed + start + index)
                for index in range(len(batch))
            ],
            output_type="np",
        ).images
        batches.append(painted_to_uint8(painted))
    return np.concatenate(batches)
