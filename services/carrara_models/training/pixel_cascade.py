"""Trains Imagen's pixel cascade: a base UNet of small pictures, and super-resolution above it.

Both are DeepFloyd IF's in layout: `IFPipeline` and `IFSuperResolutionPipeline` load the results.
Their UNets have channels for a learned variance; these stay untrained, and the schedulers say that
the variance is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from carrara_models.drawn_world.captions import write_caption
from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import sample_scene
from carrara_models.training.denoisers import SAMPLES, Examples, train_denoiser
from carrara_models.training.loop import Batch, LoopSettings, Pace
from carrara_models.training.objectives import Objective, build_schedule

CHANNELS = 3
NOISE_LEVEL_TIMESTEPS = 1000

# Captions to embeddings [B, L, D] of a frozen text encoder.
Encode = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class PixelShape:
    """The size of a pixel UNet; each width after the first halves the resolution.

    Attributes:
        attending: How many of the lowest resolutions attend to the caption.
        resolution: Of the pictures, in pixels.
    """

    widths: tuple[int, ...]
    attending: int
    resolution: int
    attention_heads: int = 4


BASE = PixelShape(widths=(48, 96, 128), attending=2, resolution=32)
SUPER_RESOLUTION = PixelShape(widths=(24, 48, 64, 96), attending=1, resolution=128)


@dataclass(frozen=True)
class SuperResolutionTask:
    """What super-resolution is trained on.

    Attributes:
        low_resolution: Of the pictures that it enlarges, in pixels.
        crop: Side of the crops that it is trained on, in pixels; its convolutions fit any size.
        max_noise_level: Timesteps up to which the low-resolution picture is noised (Ho et al.
            2021), so that what the base leaves unclear is drawn anew.
    """

    low_resolution: int = 32
    crop: int = 64
    max_noise_level: int = 400


def build_pixel_unet(
    shape: PixelShape, *, text_width: int, takes_picture: bool = False
) -> UNet2DConditionModel:
    """A UNet with fresh weights.

    Args:
        text_width: Of the caption's embeddings.
        takes_picture: Whether it sees a picture beside x_t, and its noise level beside t.
    """
    plain = len(shape.widths) - shape.attending
    return UNet2DConditionModel(
        sample_size=shape.resolution,
        in_channels=CHANNELS * (2 if takes_picture else 1),
        out_channels=2 * CHANNELS,
        block_out_channels=shape.widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * shape.attending,
        up_block_types=("CrossAttnUpBlock2D",) * shape.attending + ("UpBlock2D",) * plain,
        cross_attention_dim=text_width,
        # The name is historical: with this class, it counts the heads.
        attention_head_dim=shape.attention_heads,
        norm_num_groups=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        class_embed_type="timestep" if takes_picture else None,
    )


def pixel_schedule(objective: Objective) -> Any:
    """The forward process of pixel models: samples are clipped to the pixels' range."""
    return build_schedule(objective, clip_sample=True, variance_type="fixed_small")


def noising_schedule() -> DDPMScheduler:
    """By which the low-resolution picture is noised."""
    return DDPMScheduler(
        num_train_timesteps=NOISE_LEVEL_TIMESTEPS, beta_schedule="squaredcos_cap_v2"
    )


def train_base(
    folder: Path,
    *,
    encode: Encode,
    text_width: int,
    settings: LoopSettings,
    pace: Pace,
    shape: PixelShape,
    objective: Objective,
    on_sample: Callable[[UNet2DConditionModel, int], Mapping[str, float]],
    caption_dropout: float = 0.1,
    resume: bool = False,
) -> None:
    """Trains the base in `folder`; leaves `unet/` and `scheduler/` there.

    Args:
        encode: Of the frozen text encoder that the checkpoint will have.
        on_sample: Called with the UNet, which holds the averaged parameters, and the step.
        caption_dropout: How often the empty caption stands for the picture's own.
        resume: Goes on from the snapshot in `folder`.
    """
    torch.manual_seed(settings.seed)
    unet = build_pixel_unet(shape, text_width=text_width)
    schedule = pixel_schedule(objective)
    size = {"height": shape.resolution, "width": shape.resolution}

    def examples_at(rng: np.random.Generator, _: torch.Generator) -> Batch:
        scenes = [sample_scene(rng) for _ in range(settings.batch_size)]
        captions = [_caption(scene, rng, dropout=caption_dropout) for scene in scenes]
        return {SAMPLES: draw_scenes(scenes, **size), "prompt_embeds": encode(captions)}

    def predict(noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        return unet(noisy, timesteps, batch["prompt_embeds"]).sample[:, :CHANNELS]

    _train(
        unet,
        folder,
        settings=settings,
        pace=pace,
        schedule=schedule,
        objective=objective,
        examples=Examples(examples_at, predict),
        on_sample=on_sample,
        resume=resume,
    )


def train_super_resolution(
    folder: Path,
    *,
    encode: Encode,
    text_width: int,
    settings: LoopSettings,
    pace: Pace,
    shape: PixelShape,
    task: SuperResolutionTask,
    objective: Objective,
    on_sample: Callable[[UNet2DConditionModel, int], Mapping[str, float]],
    caption_dropout: float = 0.1,
    resume: bool = False,
) -> None:
    """Trains super-resolution in `folder`; leaves `unet/` and both schedulers there.

    Args:
        encode: Of the frozen text encoder that the checkpoint will have.
        task: What it is trained on.
        on_sample: Called with the UNet, which holds the averaged parameters, and the step.
        caption_dropout: How often the empty caption stands for the picture's own.
        resume: Goes on from the snapshot in `folder`.
    """
    torch.manual_seed(settings.seed)
    unet = build_pixel_unet(shape, text_width=text_width, takes_picture=True)
    schedule, noising = pixel_schedule(objective), noising_schedule()

    def examples_at(rng: np.random.Generator, torch_generator: torch.Generator) -> Batch:
        scenes = [sample_scene(rng) for _ in range(settings.batch_size)]
        captions = [_caption(scene, rng, dropout=caption_dropout) for scene in scenes]
        large = draw_scenes(scenes, height=shape.resolution, width=shape.resolution)
        enlarged = enlarge(shrink(large, task.low_resolution), shape.resolution)
        tops, lefts = (
            rng.integers(0, shape.resolution - task.crop + 1, size=len(scenes)) for _ in range(2)
        )
        large, enlarged = (
            torch.stack(
                [
                    picture[:, top : top + task.crop, left : left + task.crop]
                    for picture, top, left in zip(pictures, tops, lefts, strict=True)
                ]
            )
            for pictures in (large, enlarged)
        )
        levels = torch.randint(task.max_noise_level + 1, (len(scenes),), generator=torch_generator)
        noise = torch.randn(enlarged.shape, generator=torch_generator)
        return {
            SAMPLES: large,
            "picture": noising.add_noise(enlarged, noise, levels),
            "noise_level": levels,
            "prompt_embeds": encode(captions),
        }

    def predict(noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        return unet(
            torch.cat([noisy, batch["picture"]], dim=1),
            timesteps,
            batch["prompt_embeds"],
            class_labels=batch["noise_level"],
        ).sample[:, :CHANNELS]

    _train(
        unet,
        folder,
        settings=settings,
        pace=pace,
        schedule=schedule,
        objective=objective,
        examples=Examples(examples_at, predict),
        on_sample=on_sample,
        resume=resume,
    )
    noising.save_pretrained(folder / "image_noising_scheduler")


def shrink(pictures: Tensor, side: int) -> Tensor:
    """Pictures [B, 3, H, W] made smaller, by the mean over what falls together."""
    return F.interpolate(pictures, (side, side), mode="area")


def enlarge(pictures: Tensor, side: int) -> Tensor:
    """Pictures made larger, as `IFSuperResolutionPipeline` makes them."""
    return F.interpolate(pictures, (side, side), mode="bilinear", align_corners=True)


def _caption(scene: Any, rng: np.random.Generator, *, dropout: float) -> str:
    return "" if rng.random() < dropout else write_caption(scene, rng)


def _train(
    unet: UNet2DConditionModel,
    folder: Path,
    *,
    schedule: Any,
    on_sample: Callable[[UNet2DConditionModel, int], Mapping[str, float]],
    **options: Any,
) -> None:
    def sample(step: int) -> Mapping[str, float]:
        unet.save_pretrained(folder / "unet")
        return on_sample(unet, step)

    schedule.save_pretrained(folder / "scheduler")
    train_denoiser(unet, folder=folder, schedule=schedule, on_sample=sample, **options)
    unet.save_pretrained(folder / "unet")
