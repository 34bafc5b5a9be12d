"""What makers of latents say of them: all of it beside the VAE's config, else the channels."""

from __future__ import annotations

from typing import Any

from carrara_models.checkpoints import Checkpoint
from carrara_models.contracts import Contract, Kind, TensorSpec


def produced_latents(checkpoint: Checkpoint, *, channels: int) -> Contract:
    """The contract of latents [1, channels, h, w] for the checkpoint's VAE."""
    known: dict[str, Any] = {}
    if config := checkpoint.config("vae"):
        # AutoencoderDC names the channels of encoder and decoder apart.
        blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
        known["size_factor"] = 2 ** (len(blocks) - 1)
        known["scaling_factor"] = float(config.get("scaling_factor", 0.18215))
        known["shift_factor"] = float(config.get("shift_factor") or 0)
    return Contract(
        kind=Kind.LATENTS,
        space=checkpoint.space("vae"),
        tensors=(TensorSpec("latents", (1, channels, 0, 0)),),
        **known,
    )
