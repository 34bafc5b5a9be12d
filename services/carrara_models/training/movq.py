"""A VAE of ours as the `VQModel` that Kandinsky 2.2's pipelines want.

The codebook is left out, as those pipelines decode without a look into it.
"""

import torch
from diffusers import AutoencoderKL, VQModel


@torch.no_grad()
def build_movq(vae: AutoencoderKL) -> VQModel:
    """The same encoder and decoder as a `VQModel`, which knows no variance and no factor.

    Args:
        vae: With `scaling_factor` 1.
    """
    config = vae.config
    if config.scaling_factor != 1:
        raise ValueError(
            f"scaling_factor is {config.scaling_factor}; KandinskyV22Pipeline has none"
        )
    channels = config.latent_channels
    movq = VQModel(
        down_block_types=config.down_block_types,
        up_block_types=config.up_block_types,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        act_fn=config.act_fn,
        latent_channels=channels,
        vq_embed_dim=channels,
        num_vq_embeddings=1,
        norm_num_groups=config.norm_num_groups,
        sample_size=config.sample_size,
        mid_block_add_attention=config.mid_block_add_attention,
    )
    weights = {
        name: tensor
        for name, tensor in vae.state_dict().items()
        if not name.startswith(("quant_conv.", "encoder.conv_out."))
    }
    # The means are the first half of what the pointwise convolution makes of the encoder's output:
    # both are linear, and become one.
    mixing = vae.quant_conv.weight[:channels, :, 0, 0]  # [C, 2C]
    last = vae.encoder.conv_out
    weights["encoder.conv_out.weight"] = torch.einsum("ij,jklm->iklm", mixing, last.weight)
    weights["encoder.conv_out.bias"] = mixing @ last.bias + vae.quant_conv.bias[:channels]
    weights["quant_conv.weight"] = torch.eye(channels)[:, :, None, None]
    weights["quant_conv.bias"] = torch.zeros(channels)
    weights["quantize.embedding.weight"] = movq.quantize.embedding.weight
    movq.load_state_dict(weights)
    return movq
