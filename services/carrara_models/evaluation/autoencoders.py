"""Pictures through an autoencoder and back: the most that a generator of its latents can reach."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from carrara_models.checkpoints import load_component, open_checkpoint, stages_of
from carrara_models.pixels import batch_to_uint8

COMPONENT, STAGE = "vae", "decoder"
AT_ONCE = 64  # pictures, to bound the memory

Pictures = NDArray[np.uint8]


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """What comes back of pictures [B, 3, H, W] in [-1, 1], by way of the mean latents."""
    rebuilt = [
        vae.decode(vae.encode(batch).latent_dist.mode()).sample for batch in pictures.split(16)
    ]
    return torch.cat(rebuilt).clamp(-1, 1)


def find_rebuild(checkpoints: Sequence[str]) -> Callable[[Pictures], Pictures] | None:
    """The way of pictures uint8 [N, H, W, 3] through the last checkpoint's autoencoder and back.

    Args:
        checkpoints: As of `resolve`.

    Returns:
        None where it paints in pixels, or with another autoencoder than an `AutoencoderKL`.

    Raises:
        CheckpointError: It cannot be used.
    """
    if not checkpoints or STAGE not in stages_of(checkpoints[-1]):
        return None
    checkpoint = open_checkpoint(checkpoints[-1], stage=STAGE)
    if checkpoint.index.get(COMPONENT) != AutoencoderKL.__name__:
        return None
    vae = load_component(checkpoint, COMPONENT, loader=AutoencoderKL, dtype=torch.float32)

    def rebuild(pictures: Pictures) -> Pictures:
        batches = np.split(pictures, range(AT_ONCE, len(pictures), AT_ONCE))
        return np.concatenate(
            [batch_to_uint8(round_trip(vae, _pixels(batch))) for batch in batches]
        )

    return rebuild


def _pixels(pictures: Pictures) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
