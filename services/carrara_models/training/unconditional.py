"""Trains plain DDPM: a UNet that paints without being told what.

The result is a whole checkpoint, which `DDPMPipeline` loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMPipeline, UNet2DModel
from torch import Tensor

from carrara_models.pixels import painted_to_uint8
from carrara_models.training.data.settings import DataSettings, open_source
from carrara_models.training.denoisers import SAMPLES, DenoisingTask, train_denoiser
from carrara_models.training.errors import RecipeError
from carrara_models.training.loop import SKIPPED, Batch, LoopSettings, Pace, Samples
from carrara_models.training.objectives import Objective, build_schedule


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


@dataclass(frozen=True)
class UnconditionalSettings:
    """A run of plain DDPM."""

    sample_count: int = 16
    """How many pictures are painted on the way; 0: none."""
    sample_steps: int = 50
    data: DataSettings = DataSettings()
    shape: UnconditionalShape = UnconditionalShape()
    objective: Objective = Objective()
    loop: LoopSettings = LoopSettings(
        steps=8000,
        batch_size=24,
        learning_rate=1.6e-3,
        betas=(0.9, 0.98),
        warmup_steps=200,
    )

    def __post_init__(self) -> None:
        if self.sample_count < 0:
            raise RecipeError(f"sample_count is {self.sample_count}; allowed: 0 and up")


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
    folder: Path, settings: UnconditionalSettings, *, pace: Pace, resume: bool = False
) -> None:
    """Trains in `folder`; leaves `model_index.json`, `unet/` and `scheduler/` there.

    Args:
        folder: Where the run lives.
        settings: The recipe.
        pace: Reports, device and workers.
        resume: Goes on from the snapshot in `folder`.
    """
    loop, objective, side = settings.loop, settings.objective, settings.shape.resolution
    if objective.target == "flow":
        raise RecipeError("DDPMPipeline samples no flow: choose another objective.target")
    source = open_source(settings.data, height=side, width=side, seed=loop.seed)
    torch.manual_seed(loop.seed)
    unet = build_unconditional_unet(settings.shape)
    schedule = build_schedule(objective, clip_sample=True)

    def batch_at(positions: Sequence[int]) -> Batch:
        examples = source.examples(positions)
        return {SAMPLES: examples.pixels, SKIPPED: examples.skipped_counts()}

    def predict(noisy: Tensor, timesteps: Tensor, _: Batch) -> Tensor:
        return unet(noisy, timesteps).sample

    def on_sample(step: int) -> Samples:
        if not settings.sample_count:
            return Samples()
        pipeline = DDPMPipeline(unet=unet, scheduler=schedule)
        pipeline.set_progress_bar_config(disable=True)
        painted = pipeline(
            settings.sample_count,
            generator=torch.Generator().manual_seed(loop.seed),
            num_inference_steps=settings.sample_steps,
            output_type="np",
        ).images
        return Samples(pictures={"": painted_to_uint8(painted)})

    writes = train_denoiser(
        unet,
        folder=folder,
        settings=loop,
        pace=pace,
        schedule=schedule,
        objective=objective,
        task=DenoisingTask(batch_at, predict),
        on_sample=on_sample,
        resume=resume,
    )
    if writes:
        DDPMPipeline(unet=unet, scheduler=schedule).save_pretrained(folder)
