"""Kandinsky's MoVQ: latents to pixels, without a look into its codebook; one image at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import VQModel

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import IMAGE, PIXELS, Port
from carrara_models.decoders.fitting import checked_latents
from carrara_models.describing import described
from carrara_models.errors import CheckpointError, NumericalError
from carrara_models.parts import Described, Sample
from carrara_models.shared_contracts import movq_latents


@dataclass(frozen=True)
class MovqDecoder(Described):
    """A `carrara_models.parts.Decoder`; bit-identical to the end of `KandinskyV22Pipeline`."""

    movq: Any

    @torch.no_grad()
    def decode(self, sample: Sample) -> torch.Tensor:
        """Decodes one image, in this part's dtype.

        Args:
            sample: `latents` [1, C, h, w].

        Returns:
            [1, 3, H, W], about in [-1, 1].

        Raises:
            ContractError: The latents have another shape than the MoVQ takes, or stand for another
                size than the sample says.
            NumericalError: The pixels hold NaN or infinity.
        """
        latents = checked_latents(sample, self.consumes[0].contract)
        latents = latents.to(device=self.device, dtype=self.dtype)
        pixels = self.movq.decode(latents, force_not_quantize=True)["sample"]
        if not torch.isfinite(pixels).all():
            raise NumericalError("pixels")
        return pixels


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
