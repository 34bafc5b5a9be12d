"""Trains an autoencoder of pictures.

The decoder can be trained further behind a frozen encoder: the latents then keep their meaning,
and a generator may be trained on them at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from carrara_models.evaluation.attributes import score_pictures
from carrara_models.evaluation.autoencoders import round_trip
from carrara_models.pixels import batch_to_uint8
from carrara_models.training.data.drawn import DrawnWorld
from carrara_models.training.data.settings import DataSettings, open_measured, open_source
from carrara_models.training.loop import SKIPPED, Batch, LoopSettings, Pace, Samples, run_loop
from carrara_models.training.randomness import Draw, normal_of
from carrara_models.training.run_folders import load_component
from carrara_models.training.samples import readable

MEASURED_PICTURES = 64
NORMALISATION_PICTURES = 512


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


@dataclass(frozen=True)
class AutoencoderSettings:
    """A run of an autoencoder."""

    freeze_encoder: Path | None = None
    """A folder with a `vae/`, whose decoder alone is trained further."""
    data: DataSettings = DataSettings(strokes=0.25)
    shape: AutoencoderShape = AutoencoderShape()
    """Unused with `freeze_encoder`."""
    loss: AutoencoderLoss = AutoencoderLoss()
    loop: LoopSettings = LoopSettings(
        steps=2500, batch_size=12, learning_rate=1.5e-3, ema_decay=0.998
    )


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
    folder: Path, settings: AutoencoderSettings, *, pace: Pace, resume: bool = False
) -> None:
    """Trains in `folder`; leaves `vae/` there, in diffusers layout.

    Args:
        folder: Where the run lives.
        settings: The recipe.
        pace: Reports, device and workers.
        resume: Goes on from the snapshot in `folder`.
    """
    loop, weights = settings.loop, settings.loss
    torch.manual_seed(loop.seed)
    if settings.freeze_encoder is None:
        vae = build_autoencoder(settings.shape)
    else:
        vae = load_component(AutoencoderKL, settings.freeze_encoder, "vae")
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    side = vae.config.sample_size
    latent_side = side // 2 ** (len(vae.config.block_out_channels) - 1)
    latent = (vae.config.latent_channels, latent_side, latent_side)
    source = open_source(settings.data, height=side, width=side, seed=loop.seed)
    measured = open_measured(settings.data, height=side, width=side)

    def batch_at(positions: Sequence[int]) -> Batch:
        examples = source.examples(positions)
        return {
            "pictures": examples.pixels,
            "noise": normal_of(loop.seed, Draw.LATENT, positions, latent),
            "latent_noise": normal_of(loop.seed, Draw.LATENT_NOISE, positions, latent),
            SKIPPED: examples.skipped_counts(),
        }

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = batch["pictures"]
        with torch.set_grad_enabled(settings.freeze_encoder is None):
            posterior = vae.encode(pictures).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (0.5 * log_variance).exp() * batch["noise"]
        latents = latents + weights.latent_noise * mean.std() * batch["latent_noise"]
        rebuilt = vae.decode(latents).sample.float()
        absolute = F.l1_loss(rebuilt, pictures)
        squared = F.mse_loss(rebuilt, pictures)
        # Eq. 10, Kingma and Welling 2014, as a mean over the elements.
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        total = absolute + weights.squared_error * squared + weights.kl * kl
        return total, {"absolute": absolute, "squared": squared, "kl": kl}

    def on_sample(step: int) -> Samples:
        positions = range(MEASURED_PICTURES)
        pictures = measured.examples(positions).pixels
        rebuilt = round_trip(vae, pictures.to(vae.device)).cpu()
        # Peak signal-to-noise ratio for a range of 2, in dB.
        scalars = {"psnr": (10 * torch.log10(4 / F.mse_loss(rebuilt, pictures))).item()}
        if isinstance(measured, DrawnWorld):
            scenes = [scene for scene, _ in measured.scenes(positions)]
            scalars |= score_pictures(readable(batch_to_uint8(rebuilt)), scenes)
        return Samples(scalars, {"": batch_to_uint8(torch.cat([pictures[:16], rebuilt[:16]]))})

    writes = run_loop(
        vae,
        folder=folder,
        settings=loop,
        pace=pace,
        batch_at=batch_at,
        loss_of=loss_of,
        on_sample=on_sample,
        resume=resume,
    )
    if writes:
        if settings.freeze_encoder is None:
            seen = source.examples(range(NORMALISATION_PICTURES)).pixels
            normalise_latents(vae, seen.to(vae.device))
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
