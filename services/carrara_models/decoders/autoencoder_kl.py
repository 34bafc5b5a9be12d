"""The VAE decoder of Stable Diffusion: latents to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import IMAGE, PIXELS, Contract, Kind, Port, TensorSpec
from carrara_models.decoders.fitting import decode_latents
from carrara_models.describing import described
from carrara_models.errors import NumericalError
from carrara_models.parts import Described, Sample

# What StableDiffusionUpscalePipeline takes whatever the config says: early ones said none.
UPSCALER_SCALING_FACTOR = 0.08333


@dataclass(frozen=True)
class VaeDecoder(Described):
    """A `carrara_models.parts.Decoder`; bit-identical to the end of diffusers' pipelines."""

    vae: Any

    @torch.no_grad()
    def decode(self, samples: Sequence[Sample]) -> list[torch.Tensor | NumericalError]:
        """Decodes images.

        Args:
            samples: `latents` [1, C, h, w], scaled as the generator works with them.

        Raises:
            ContractError: Latents have another shape than the VAE takes, or stand for another size
                than the sample says.
        """
        return decode_latents(self, samples, self._pixels)

    def _pixels(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(self._unscaled(latents), return_dict=False)[0]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The latents of pictures, [B, C, h, w], scaled as `decode` takes them.

        Where the encoder gives a distribution they are its mean.

        Args:
            pixels: [B, 3, H, W] in [-1, 1], sides multiples of the size factor.
        """
        encoded = self.vae.encode(pixels.to(device=self.device, dtype=self.dtype))
        is_drawn = hasattr(encoded, "latent_dist")
        return self._scaled(encoded.latent_dist.mode() if is_drawn else encoded.latent)

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.vae.config
        if (distribution := self._distribution(latents)) is not None:
            mean, std = distribution
            return latents * std / config.scaling_factor + mean
        latents = latents / config.scaling_factor
        return latents + config.shift_factor if config.get("shift_factor") else latents

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.vae.config
        if (distribution := self._distribution(latents)) is not None:
            mean, std = distribution
            return (latents - mean) * config.scaling_factor / std
        return (latents - (config.get("shift_factor") or 0)) * config.scaling_factor

    def _distribution(self, latents: torch.Tensor) -> list[torch.Tensor] | None:
        """Mean and deviation of each channel, [1, C, 1, 1], where the config has them."""
        values = [self.vae.config.get(name) for name in ("latents_mean", "latents_std")]
        if None in values:
            return None
        return [latents.new_tensor(numbers).view(1, -1, 1, 1) for numbers in values]


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> VaeDecoder:
    """Loads the VAE of a checkpoint that was opened for the decoder.

    Raises:
        CheckpointError: A file is broken.
    """
    vae = load_component(checkpoint, "vae", loader=AutoencoderKL, dtype=dtype)
    if checkpoint.pipeline_class == "StableDiffusionUpscalePipeline":
        vae.register_to_config(scaling_factor=UPSCALER_SCALING_FACTOR)
    if dtype == torch.float16 and vae.config.force_upcast:
        # Its activations leave the range of float16; diffusers' pipelines decode it in float32 too.
        dtype = torch.float32
        vae = vae.to(dtype)
    return VaeDecoder(
        vae=vae.to(device),
        **described(
            checkpoint,
            {"vae": vae},
            consumes=(
                Port(
                    Contract(
                        kind=Kind.LATENTS,
                        space=checkpoint.space("vae"),
                        tensors=(TensorSpec("latents", (1, vae.config.latent_channels, 0, 0)),),
                        size_factor=2 ** (len(vae.config.block_out_channels) - 1),
                        scaling_factor=float(vae.config.scaling_factor),
                        shift_factor=float(vae.config.get("shift_factor") or 0),
                    )
                ),
            ),
            produces=(IMAGE, PIXELS),
            arguments=(),
            device=device,
            dtype=dtype,
        ),
    )
