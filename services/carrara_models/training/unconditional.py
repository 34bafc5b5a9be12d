"""Trains plain DDPM: a UNet that paints the drawn world without being told what.

The result is a whole checkpoint, which `DDPMPipeline` loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, UNet2DModel
from torch import Tensor

from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import sample_scene
from carrara_models.training.denoisers import SAMPLES, Examples, train_denoiser
from carrara_models.training.loop import Batch, LoopSettings, Pace
from carrara_models.training.objectives import Objective, build_schedule
from carrara_models.training.sample_grids import save_grid

GRID_PICTURES = 16


@dataclass(frozen=True)
class UnconditionalShape:
    """The size of the UNet; each width after the first halves the resolution.

    Attributes:
        attending: How many of the lowest resolutions have self-attention.
        resolution: Of the pictures, in pixels.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    attending: int = 1
    attention_head_dim: int = 16
    resolution: int = 32


def build_unconditional_unet(shape: UnconditionalShape) -> UNet2DModel:
    """A UNet with fresh weights, of pixels [B, 3, H, W]."""
    plain = len(shape.widths) - shape.attending
    return UNet2DModel(
        sample_size=shape.resolution,
        block_out_channels=shape.widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * shape.attending,
        up_block_types=("AttnUpBlock2D",) * shape.attending + ("UpBlock2D",) * plain,
        attention_head_dim=shape.attention_head_dim,
        norm_num_groups=8,
    )


def train_unconditional(
    folder: Path,
    *,
    settings: LoopSettings,
    pace: Pace,
    shape: UnconditionalShape,
    objective: Objective,
    sampling_steps: int = 50,
    resume: bool = False,
) -> None:
    """Trains in `folder`; leaves `model_index.json`, `unet/` and `scheduler/` there.

    Args:
        sampling_steps: Of the sample pictures.
        resume: Goes on from the snapshot in `folder`.
    """
    torch.manual_seed(settings.seed)
    unet = build_unconditional_unet(shape)
    schedule = build_schedule(objective, clip_sample=True)
    size = {"height": shape.resolution, "width": shape.resolution}

    def examples_at(rng: np.random.Generator, _: torch.Generator) -> Batch:
        scenes = [sample_scene(rng) for _ in range(settings.batch_size)]
        return {SAMPLES: draw_scenes(scenes, **size)}

    def predict(noisy: Tensor, timesteps: Tensor, _: Batch) -> Tensor:
        return unet(noisy, timesteps).sample

    def on_sample(step: int) -> Mapping[str, float]:
        pipeline = DDPMPipeline(unet=unet, scheduler=schedule)
        pipeline.set_progress_bar_config(disable=True)
        painted = pipeline(
            GRID_PICTURES,
            generator=torch.Generator().manual_seed(settings.seed),
            num_inference_steps=sampling_steps,
            output_type="np",
        ).images
        pictures = (painted * 255).round().astype(np.uint8)
        save_grid(pictures, folder / f"sample-{step:06d}.png")
        return {}

    train_denoiser(
        unet,
        folder=folder,
        settings=settings,
        pace=pace,
        schedule=schedule,
        objective=objective,
        examples=Examples(examples_at, predict),
        on_sample=on_sample,
        resume=resume,
    )
    DDPMPipeline(unet=unet, scheduler=schedule).save_pretrained(folder)
