"""Large pictures decoded in tiles, whose memory does not grow with the picture."""

from __future__ import annotations

import torch
from diffusers import AutoencoderDC, AutoencoderKL

# Of a tile's side; there neighbours are blended, so that no seam is seen.
OVERLAP = 0.25


def use_tiles(autoencoder: torch.nn.Module, *, side: int) -> None:
    """Has an autoencoder decode pictures with a side of more than `side` pixels in tiles.

    A MoVQ is left as it is: diffusers does not tile it.

    Args:
        side: A multiple of the pixels that a latent cell stands for.
    """
    if isinstance(autoencoder, AutoencoderKL):
        autoencoder.enable_tiling()
        autoencoder.tile_overlap_factor = OVERLAP
        autoencoder.tile_sample_min_size = side
        cell = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        autoencoder.tile_latent_min_size = side // cell
    elif isinstance(autoencoder, AutoencoderDC):
        # Of whole cells: diffusers cuts latents and pixels by it.
        cell = autoencoder.spatial_compression_ratio
        stride = max(1, int(side // cell * (1 - OVERLAP))) * cell
        autoencoder.enable_tiling(side, side, stride, stride)
