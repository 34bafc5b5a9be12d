"""Kandinsky's MoVQ: latents to pixels, without a look into its codebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import VQModel

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import IMAGE, PIXELS, Port
from carrara_models.decoders.fitting import decode_latents
from carrara_models.describing import described
from carrara_models.errors import CheckpointError, NumericalError
from carrara_models.parts import Described, Sample
from carrara_models.shared_contracts import movq_latents


@dataclass(frozen=True)
class MovqDecoder(Described):
    """A `carrara_models.parts.Decoder`; bit-identical to the end of `KandinskyV22Pipeline`."""

    movq: Any

    @torch.no_grad()
    def decode(self, samples: Sequence[Sample]) -> list[torch.Tensor | NumericalError]:
        """Decodes images.

        Args:
            samples: `latents` [1, C, h, w].

        Raises:
            ContractError: Latents have another shape than the MoVQ takes, or stand for another size
                than the sample says.
        """
        return decode_latents(self, samples, self._pixels)

    def _pixels(self, latents: torch.Tensor) -> torch.Tensor:
        return self.movq.decode(latents, force_not_quantize=True)["sample"]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The latents of pictures, [B, C, h, w], as `decode` takes them.

        Args:
            pixels: [B, 3, H, W] in [-1, 1], sides multiples of the size factor.
        """
        return self.movq.encode(pixels.to(device=self.device, dtype=self.dtype)).latents


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> MovqDecoder:
    """Loads the MoVQ of a checkpoint that was opened for the decoder.

    Raises:
        CheckpointError: A file is broken, or the MoVQ takes tokens in place of latents.
    """
    movq = load_component(checkpoint, "movq", loader=VQModel, dtype=dtype)
    if movq.config.lookup_from_codebook:
        raise CheckpointError(
            f"{checkpoint.path / 'movq' / 'config.json'}: with lookup_from_codebook it takes "
            f"tokens; {checkpoint.pipeline_class} gives it latents."
        )
    channels = movq.config.vq_embed_dim or movq.config.latent_channels
    return MovqDecoder(
        movq=movq.to(device),
        **described(
            checkpoint,
            {"movq": movq},
            consumes=(Port(movq_latents(checkpoint, channels=channels)),),
            produces=(IMAGE, PIXELS),
            arguments=(),
            device=device,
            dtype=dtype,
        ),
    )
