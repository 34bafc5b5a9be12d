"""Holds the config of a conditional UNet against what its pipeline gives it."""

from __future__ import annotations

from typing import Any

from carrara_models.checkpoints import Checkpoint
from carrara_models.errors import CheckpointError

_PLAIN = {
    "time_cond_proj_dim": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None,),
    "encoder_hid_dim_type": (None, "text_proj"),
}


def check_unet_inputs(
    checkpoint: Checkpoint, config: Any, *, component: str = "unet", **given: tuple[Any, ...]
) -> None:
    """Refuses UNets that want other inputs than the pipeline gives them.

    Args:
        component: Folder that the config lies in.
        given: For fields of the config, the values that this pipeline serves; the others must be
            those of a UNet that wants a timestep and prompt embeddings alone.

    Raises:
        CheckpointError: Which fields have other values.
    """
    served = {**_PLAIN, **given}
    if refused := [name for name, values in served.items() if config.get(name) not in values]:
        raise CheckpointError(
            f"{checkpoint.path / component / 'config.json'}: this UNet wants other inputs "
            f"({', '.join(refused)}) than {checkpoint.pipeline_class} gives."
        )


def size_multiple(config: Any) -> int:
    """What each side of x_t is a multiple of, so that all levels of the UNet meet again."""
    return 2 ** (len(config.block_out_channels) - 1)


def prompt_embeds_width(config: Any) -> int:
    """Of the embeddings that the UNet attends to, before it projects them."""
    return config.encoder_hid_dim or config.cross_attention_dim
