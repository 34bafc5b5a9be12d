"""The VAE decoder of Stable Diffusion: latents to pixels, one image at a time.

One at a time because its convolutions round differently in a batch, whatever is chunked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL

from carrara_models import limits
from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import Argument, Component, Contract, Kind, Port, TensorSpec
from carrara_models.errors import ContractError, NumericalError
from carrara_models.parts import Sample


@dataclass(frozen=True)
class VaeDecoder:
    """A `carrara_models.parts.Decoder`; bit-identical to the end of `StableDiffusionPipeline`."""

    vae: Any
    fingerprint: str
    family: str
    components: tuple[Component, ...]
    consumes: tuple[Port, ...]
    produces: tuple[Contract, ...]
    arguments: tuple[Argument, ...]
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def decode(self, sample: Sample) -> torch.Tensor:
        """Decodes one image, in this part's dtype.

        Args:
            sample: `latents` [1, C, h, w], scaled as the generator works with them.

        Returns:
            float32 [1, 3, H, W] in [-1, 1].

        Raises:
            ContractError: The latents have another shape than the VAE takes, or stand for another
                size than the sample says.
            NumericalError: The pixels hold NaN or infinity.
        """
        latents = self._check(sample).to(device=self.device, dtype=self.dtype)
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        if not torch.isfinite(pixels).all():
            raise NumericalError("pixels")
        return pixels.float().clamp(-1, 1)

    def _check(self, sample: Sample) -> torch.Tensor:
        (port,) = self.consumes
        channels, factor = port.contract.tensors[0].shape[1], port.contract.size_factor
        latents = sample.tensors.get("latents")
        if latents is None:
            raise ContractError("The sample has no latents.")
        shape = list(latents.shape)
        if len(shape) != 4 or shape[:2] != [1, channels] or 0 in shape:
            raise ContractError(
                f"The latents are {shape}; the decoder takes [1, {channels}, h, w]."
            )
        if not latents.is_floating_point():
            raise ContractError(f"The latents are {latents.dtype}; the decoder takes real numbers.")
        height, width = shape[2] * factor, shape[3] * factor
        if (sample.height, sample.width) != (height, width):
            raise ContractError(
                f"The sample says {sample.height} x {sample.width} pixels; its latents {shape} "
                f"stand for {height} x {width} with the decoder's size factor {factor}."
            )
        if height * width > limits.MAX_PIXELS:
            raise ContractError(
                f"The latents {shape} stand for {height * width} pixels; "
                f"at most {limits.MAX_PIXELS} are decoded."
            )
        return latents


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> VaeDecoder:
    """Loads the VAE of a checkpoint that was opened for the decoder.

    Raises:
        CheckpointError: A file is broken.
    """
    vae = load_component(checkpoint, "vae", loader=AutoencoderKL, dtype=dtype)
    fingerprint = checkpoint.fingerprints["vae"]
    return VaeDecoder(
        vae=vae.to(device),
        fingerprint=checkpoint.fingerprint,
        family=checkpoint.family.name,
        components=(Component("vae", type(vae).__name__, fingerprint, vae.num_parameters()),),
        consumes=(
            Port(
                Contract(
                    kind=Kind.LATENTS,
                    space=fingerprint,
                    tensors=(TensorSpec("latents", (1, vae.config.latent_channels, 0, 0)),),
                    size_factor=2 ** (len(vae.config.block_out_channels) - 1),
                    scaling_factor=float(vae.config.scaling_factor),
                )
            ),
        ),
        produces=(
            Contract(kind=Kind.IMAGE, space="rgb", tensors=(TensorSpec("image", (0, 0, 3)),)),
        ),
        arguments=(),
        device=device,
        dtype=dtype,
    )
