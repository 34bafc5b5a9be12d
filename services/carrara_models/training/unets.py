"""UNets with fresh weights, in the layouts that diffusers' pipelines load."""

from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor


@dataclass(frozen=True)
class UNetShape:
    """The size of a UNet."""

    widths: tuple[int, ...] = (32, 64, 128)
    """Each after the first halves the resolution."""
    attending: int = 2
    """How many of the lowest resolutions attend to what the UNet is told."""
    attention_heads: int = 4


def build_unet(
    shape: UNetShape, *, in_channels: int, out_channels: int, size: int, **condition: Any
) -> UNet2DConditionModel:
    """A UNet with fresh weights.

    Args:
        size: Side of the samples, h = w.
        condition: Further arguments of the class, which say what it is told; see below.
    """
    plain = len(shape.widths) - shape.attending
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=shape.widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * shape.attending,
        up_block_types=("CrossAttnUpBlock2D",) * shape.attending + ("UpBlock2D",) * plain,
        # The name is historical: with this class, it counts the heads.
        attention_head_dim=shape.attention_heads,
        norm_num_groups=8,
        **condition,
    )


def told_a_caption(*, text_width: int) -> dict[str, Any]:
    """Of a UNet that attends to a caption's states; pooled, they join the timestep."""
    return {
        "cross_attention_dim": text_width,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
    }


def told_an_image_embedding(*, embedding_width: int, token_width: int) -> dict[str, Any]:
    """Of a UNet that is told an image embedding and nothing else, as Kandinsky 2.2's is.

    Args:
        embedding_width: E.
        token_width: Of the tokens that it makes of the embedding, and attends to.
    """
    return {
        "cross_attention_dim": token_width,
        "addition_embed_type": "image",
        "encoder_hid_dim_type": "image_proj",
        "encoder_hid_dim": embedding_width,
    }


def use_plain_attention(unet: UNet2DConditionModel) -> None:
    """Without torch's fused attention, whose backward pass on a CPU took a third of each step."""
    unet.set_attn_processor(AttnProcessor())
