"""Trains Imagen's super-resolution: a pixel UNet that sees the small picture beside the noisy one.

Ho et al. 2021, with noise augmentation. The result has DeepFloyd IF's layout:
`IFSuperResolutionPipeline` loads it beside the base's text encoder. Its UNet has channels for a
learned variance; these stay untrained, and the scheduler says that the variance is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, IFSuperResolutionPipeline, UNet2DConditionModel
from torch import Tensor

from carrara_models.pixels import painted_to_uint8
from carrara_models.training.data.settings import DataSettings, open_measured, open_source
from carrara_models.training.denoisers import SAMPLES, DenoisingTask, train_denoiser
from carrara_models.training.errors import RecipeError
from carrara_models.training.export import NO_CHECKERS
from carrara_models.training.generator import PIXEL_CHANNELS, build_sampler
from carrara_models.training.loop import SKIPPED, Batch, LoopSettings, Pace, Samples
from carrara_models.training.objectives import Objective, build_schedule
from carrara_models.training.randomness import Draw, chosen_of, normal_of, rng_of
from carrara_models.training.run_folders import load_component
from carrara_models.training.samples import SampleSettings, join, sample_captions
from carrara_models.training.text_conditioning import PROMPT_EMBEDS, FrozenTextEncoder, empty_where
from carrara_models.training.unets import (
    UNetShape,
    build_unet,
    told_a_caption,
    use_plain_attention,
)

NOISE_LEVELS = 1000


@dataclass(frozen=True)
class SuperResolutionSettings:
    """A run of super-resolution."""

    text_encoder: Path = Path("runs/text-encoder")
    """A folder with a `tokenizer/` and a `text_encoder/`: those of the base."""
    init: Path | None = None
    """A folder with a `unet/` to begin with, such as that of an earlier run."""
    resolution: int = 128
    """Of the large pictures, in pixels."""
    low_resolution: int = 32
    """Of the pictures that it enlarges, in pixels."""
    crop: int = 64
    """Side of the crops that it is trained on, in pixels; its convolutions fit any size."""
    max_noise_level: int = 400
    """Timesteps up to which the small picture is noised, so that what the base leaves unclear is
    drawn anew."""
    sample_noise_level: int = 100
    """That of sample pictures."""
    dropout: float = 0.1
    """How often the empty caption stands for the picture's own."""
    embedding_cache: Path | None = None
    """A folder to keep captions' states in; worth its disk where captions come back."""
    data: DataSettings = DataSettings()
    shape: UNetShape = UNetShape(widths=(16, 24, 32, 48), attending=1)
    objective: Objective = Objective()
    samples: SampleSettings = SampleSettings(count=24, guidance_scale=1.0)
    loop: LoopSettings = LoopSettings(
        steps=4000,
        batch_size=16,
        learning_rate=1.6e-3,
        betas=(0.9, 0.98),
        warmup_steps=200,
    )


def train_super_resolution(
    folder: Path, settings: SuperResolutionSettings, *, pace: Pace, resume: bool = False
) -> None:
    """Trains in `folder`; leaves `unet/`, `scheduler/` and `image_noising_scheduler/` there.

    Args:
        folder: Where the run lives.
        settings: The recipe.
        pace: Reports, device and workers.
        resume: Goes on from the snapshot in `folder`.
    """
    if settings.crop > settings.resolution:
        raise RecipeError(f"crop is {settings.crop}, of pictures of {settings.resolution} pixels")
    loop, objective = settings.loop, settings.objective
    texts = FrozenTextEncoder(settings.text_encoder, cache=settings.embedding_cache)
    texts.check_tells_pixels()
    large_size = {"height": settings.resolution, "width": settings.resolution}
    source = open_source(settings.data, seed=loop.seed, **large_size)
    measured = open_measured(settings.data, **large_size)
    torch.manual_seed(loop.seed)
    if settings.init is None:
        unet = build_unet(
            settings.shape,
            in_channels=2 * PIXEL_CHANNELS,
            out_channels=2 * PIXEL_CHANNELS,
            size=settings.resolution,
            class_embed_type="timestep",
            **told_a_caption(text_width=texts.width),
        )
    else:
        unet = load_component(UNet2DConditionModel, settings.init, "unet")
    use_plain_attention(unet)
    schedule = build_schedule(objective, clip_sample=True, variance_type="fixed_small")
    noising = noising_schedule()

    def batch_at(positions: Sequence[int]) -> Batch:
        examples = source.examples(positions)
        dropped = chosen_of(loop.seed, Draw.DROPOUT, positions, settings.dropout)
        captions = empty_where(dropped, examples.captions)
        large = examples.pixels
        enlarged = enlarge(shrink(large, settings.low_resolution), settings.resolution)
        windows = [_window(settings, position) for position in positions]
        large, enlarged = (
            torch.stack([picture[w] for picture, w in zip(pictures, windows, strict=True)])
            for pictures in (large, enlarged)
        )
        levels = torch.tensor(
            [
                rng_of(loop.seed, Draw.NOISE_LEVEL, position).integers(settings.max_noise_level + 1)
                for position in positions
            ]
        )
        noise = normal_of(loop.seed, Draw.LATENT_NOISE, positions, enlarged.shape[1:])
        return {
            SAMPLES: large,
            "picture": noising.add_noise(enlarged, noise, levels),
            "noise_level": levels,
            SKIPPED: examples.skipped_counts(),
            **texts.encode(captions),
        }

    def predict(noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        return unet(
            torch.cat([noisy, batch["picture"]], dim=1),
            timesteps,
            batch[PROMPT_EMBEDS],
            class_labels=batch["noise_level"],
        ).sample[:, :PIXEL_CHANNELS]

    chosen = sample_captions(settings.samples, settings.data, measured)

    def on_sample(step: int) -> Samples:
        """True pictures, made small and enlarged again."""
        unet.save_pretrained(folder / "unet")
        pipeline = IFSuperResolutionPipeline(
            tokenizer=texts.tokenizer,
            text_encoder=texts.model,
            unet=unet,
            scheduler=build_sampler(schedule, objective),
            image_noising_scheduler=noising,
            **NO_CHECKERS,
        )
        pipeline.set_progress_bar_config(disable=True)
        painted = []
        for each in chosen:
            large = each.true_pictures(settings.resolution)
            pictures = pipeline(
                each.captions,
                image=shrink(large, settings.low_resolution),
                num_inference_steps=settings.samples.num_inference_steps,
                guidance_scale=settings.samples.guidance_scale,
                noise_level=settings.sample_noise_level,
                generator=[
                    torch.Generator().manual_seed(loop.seed + index) for index in range(len(large))
                ],
                output_type="np",
                **large_size,
            ).images
            painted.append(each.samples(painted_to_uint8(pictures)))
        return join(painted)

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
        unet.save_pretrained(folder / "unet")
        build_sampler(schedule, objective).save_pretrained(folder / "scheduler")
        noising.save_pretrained(folder / "image_noising_scheduler")


def noising_schedule() -> DDPMScheduler:
    """By which the small picture is noised."""
    return DDPMScheduler(num_train_timesteps=NOISE_LEVELS, beta_schedule="squaredcos_cap_v2")


def shrink(pictures: Tensor, side: int) -> Tensor:
    """Pictures [B, 3, H, W] made smaller, by the mean over what falls together."""
    return F.interpolate(pictures, (side, side), mode="area")


def enlarge(pictures: Tensor, side: int) -> Tensor:
    """Pictures made larger, as `IFSuperResolutionPipeline` makes them."""
    return F.interpolate(pictures, (side, side), mode="bilinear", align_corners=True)


def _window(settings: SuperResolutionSettings, position: int) -> tuple[slice, slice, slice]:
    rng = rng_of(settings.loop.seed, Draw.CROP, position)
    top, left = rng.integers(0, settings.resolution - settings.crop + 1, size=2)
    return slice(None), slice(top, top + settings.crop), slice(left, left + settings.crop)
