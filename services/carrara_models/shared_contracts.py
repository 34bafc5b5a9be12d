"""Contracts that both sides of a seam state in the same words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from carrara_models.checkpoints import Checkpoint
from carrara_models.contracts import Contract, Kind, TensorSpec, conditioning_contract


def produced_latents(checkpoint: Checkpoint, *, channels: int) -> Contract:
    """The latents [1, channels, h, w] of the checkpoint's VAE.

    What needs the VAE's config is 0 where that is not there.
    """
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


def movq_latents(checkpoint: Checkpoint, *, channels: int) -> Contract:
    """The latents [1, C, h, w] that it takes, as the checkpoint's folder tells.

    They are not scaled: a factor of 1. What needs the MoVQ's config is 0 where that is not there.
    """
    known: dict[str, Any] = {}
    if config := checkpoint.config("movq"):
        known["size_factor"] = 2 ** (len(config["block_out_channels"]) - 1)
        known["scaling_factor"] = 1.0
    return Contract(
        kind=Kind.LATENTS,
        space=checkpoint.space("movq"),
        tensors=(TensorSpec("latents", (1, channels, 0, 0)),),
        **known,
    )


def projected_contract(
    *, length: int, width: int, pooled_width: int, image_width: int | None, space: str
) -> Contract:
    """What such an encoder makes, and what takes it.

    Args:
        length: In tokens; 0 for any.
        image_width: Of the embedding of a picture of zeros, of Kandinsky, which has either that or
            two rows; None of unCLIP.
    """
    rows = 1 if image_width is None else 0
    contract = conditioning_contract(
        {
            "prompt_embeds": (rows, length, width),
            "pooled_prompt_embeds": (rows, pooled_width),
            "prompt_attention_mask": (rows, length),
        },
        space=space,
    )
    if image_width is None:
        return contract
    zero = TensorSpec("zero_image_embeds", (1, image_width), required=False)
    return replace(contract, tensors=(*contract.tensors, zero))
