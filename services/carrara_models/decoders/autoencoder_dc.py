"""Sana's deep compression autoencoder: decoded as a VAE is, with 32 pixels per latent cell."""

from __future__ import annotations

import torch
from diffusers import AutoencoderDC

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import IMAGE, PIXELS, Contract, Kind, Port, TensorSpec
from carrara_models.decoders.autoencoder_kl import VaeDecoder
from carrara_models.describing import described


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> VaeDecoder:
    """Loads the autoencoder of a checkpoint that was opened for the decoder.

    Raises:
        CheckpointError: A file is broken.
    """
    vae = load_component(checkpoint, "vae", loader=AutoencoderDC, dtype=dtype)
    consumed = Contract(
        kind=Kind.LATENTS,
        space=checkpoint.space("vae"),
        tensors=(TensorSpec("latents", (1, vae.config.latent_channels, 0, 0)),),
        size_factor=2 ** (len(vae.config.encoder_block_out_channels) - 1),
        scaling_factor=float(vae.config.scaling_factor),
    )
    return VaeDecoder(
        vae=vae.to(device),
        **described(
            checkpoint,
            {"vae": vae},
            consumes=(Port(consumed),),
            produces=(IMAGE, PIXELS),
            arguments=(),
            device=device,
            dtype=dtype,
        ),
    )
