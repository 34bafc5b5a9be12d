"""Trains an autoencoder on pictures of the drawn world.

The decoder can be trained further behind a frozen encoder: the latents then keep their meaning,
and a generator may be trained on them at the same time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import sample_scene
from carrara_models.drawn_world.strokes import draw_strokes
from carrara_models.evaluation.attributes import (
    CaptionKind,
    held_out_captions,
    score_pictures,
)
from carrara_models.evaluation.painting import round_trip, to_uint8
from carrara_models.training.loop import Batch, LoopSettings, Pace, run_loop
from carrara_models.training.sample_grids import save_grid

SAMPLE_SCENES = 64
NORMALISATION_SCENES = 512


@dataclass(frozen=True)
class AutoencoderShape:
    """The size of the autoencoder; each width after the first halves the resolution."""

    widths: tuple[int, ...] = (24, 48, 64)
    latent_channels: int = 4
    resolution: int = 64


@dataclass(frozen=True)
class AutoencoderLoss:
    """The weights of the terms beside the mean absolute error, each a mean over its elements."""

    squared_error: float = 2.0
    kl: float = 1e-4
    latent_noise: float = 0.0
    """Standard deviation of noise added to the latents, in units of theirs: what a generator
    leaves of its own."""


def build_autoencoder(shape: AutoencoderShape) -> AutoencoderKL:
    """An autoencoder with fresh weights."""
    blocks = len(shape.widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=shape.widths,
        layers_per_block=1,
        latent_channels=shape.latent_channels,
        norm_num_groups=8,
        sample_size=shape.resolution,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def train_autoencoder(
    folder: Path,
    *,
    settings: LoopSettings,
    pace: Pace,
    shape: AutoencoderShape,
    loss: AutoencoderLoss,
    frozen_encoder: Path | None = None,
    strokes: float = 0.0,
    max_objects: int = 2,
    resume: bool = False,
) -> None:
    """Trains in `folder`; leaves `vae/` there, in diffusers layout.

    Args:
        folder: Where the run lives.
        settings: The recipe.
        pace: Reports, device and workers.
        shape: The size of the autoencoder; unused with `frozen_encoder`.
        loss: The weights of the loss.
        frozen_encoder: A folder with a `vae/`, whose decoder alone is trained further.
        strokes: Share of the pictures that show strokes, in every colour, instead of a scene.
        max_objects: The largest number of objects in a scene.
        resume: Goes on from the snapshot in `folder`.
    """
    torch.manual_seed(settings.seed)
    if frozen_encoder is None:
        vae = build_autoencoder(shape)
    else:
        vae = AutoencoderKL.from_pretrained(frozen_encoder / "vae")
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    resolution = vae.config.sample_size
    latent_size = resolution // 2 ** (len(vae.config.block_out_channels) - 1)
    latent_channels = vae.config.latent_channels

    def batch_at(step: int) -> Batch:
        rng = np.random.default_rng((settings.seed, step))
        torch_generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        stroke_count = int((rng.random(settings.batch_size) < strokes).sum())
        scenes = [
            sample_scene(rng, max_objects=max_objects)
            for _ in range(settings.batch_size - stroke_count)
        ]
        size = {"height": resolution, "width": resolution}
        latent = (settings.batch_size, latent_channels, latent_size, latent_size)
        return {
            "pictures": torch.cat(
                [draw_scenes(scenes, **size), draw_strokes(stroke_count, rng, **size)]
            ),
            "noise": torch.randn(latent, generator=torch_generator),
            "latent_noise": torch.randn(latent, generator=torch_generator),
        }

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = batch["pictures"]
        with torch.set_grad_enabled(frozen_encoder is None):
            posterior = vae.encode(pictures).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (0.5 * log_variance).exp() * batch["noise"]
        latents = latents + loss.latent_noise * mean.std() * batch["latent_noise"]
        rebuilt = vae.decode(latents).sample.float()
        absolute = F.l1_loss(rebuilt, pictures)
        squared = F.mse_loss(rebuilt, pictures)
        # Eq. 10, Kingma and Welling 2014, as a mean over the elements.
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        total = absolute + loss.squared_error * squared + loss.kl * kl
        return total, {"absolute": absolute, "squared": squared, "kl": kl}

    def on_sample(step: int) -> Mapping[str, float]:
        scenes, _ = held_out_captions(
            SAMPLE_SCENES, seed=1, kind=CaptionKind(max_objects=max_objects)
        )
        pictures = draw_scenes(scenes, height=resolution, width=resolution)
        rebuilt = round_trip(vae, pictures.to(pace.device)).cpu()
        save_grid(
            to_uint8(torch.cat([pictures[:16], rebuilt[:16]])), folder / f"sample-{step:06d}.png"
        )
        # Peak signal-to-noise ratio for a range of 2, in dB.
        psnr = (10 * torch.log10(4 / F.mse_loss(rebuilt, pictures))).item()
        return {"psnr": psnr} | score_pictures(to_uint8(rebuilt), scenes)

    run_loop(
        vae,
        folder=folder,
        settings=settings,
        pace=pace,
        batch_at=batch_at,
        loss_of=loss_of,
        on_sample=on_sample,
        resume=resume,
    )
    if frozen_encoder is None:
        rng = np.random.default_rng((settings.seed, settings.steps))
        scenes = [sample_scene(rng, max_objects=max_objects) for _ in range(NORMALISATION_SCENES)]
        pictures = draw_scenes(scenes, height=resolution, width=resolution)
        normalise_latents(vae, pictures.to(pace.device))
    vae.save_pretrained(folder / "vae")


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Gives the latents of `pictures` zero mean and unit variance in each channel, in place.

    `StableDiffusionPipeline` knows one factor and no shift. Both convolutions next to the latents
    are pointwise, so that what one applies the other takes back, and pictures stay as they were.

    Args:
        vae: With `scaling_factor` 1.
        pictures: [B, 3, H, W] in [-1, 1].
    """
    latents = torch.cat([vae.encode(batch).latent_dist.mode() for batch in pictures.split(32)])
    shift = latents.mean(dim=(0, 2, 3))  # [C]
    scale = latents.std(dim=(0, 2, 3))
    channels = len(scale)
    encode, decode = vae.quant_conv, vae.post_quant_conv  # [2C, 2C, 1, 1], [C, C, 1, 1]
    encode.weight[:channels] /= scale[:, None, None, None]
    encode.bias[:channels] = (encode.bias[:channels] - shift) / scale
    # The second half of the moments is the logarithm of a variance.
    encode.bias[channels:] -= 2 * scale.log()
    decode.bias += decode.weight[:, :, 0, 0] @ shift
    decode.weight *= scale[None, :, None, None]
