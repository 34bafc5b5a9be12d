"""DeepFloyd IF's base UNet: embeddings and noise to pixels."""

from __future__ import annotations

import torch

from carrara_models.checkpoints import Checkpoint
from carrara_models.denoising.pixel_unet import PixelUNet, load_pixel_unet


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> PixelUNet:
    """Loads UNet and scheduler; the safety checker and the watermarker never.

    Raises:
        CheckpointError: A file is broken, or the UNet wants inputs that this family does not give.
    """
    return PixelUNet(**load_pixel_unet(checkpoint, device=device, dtype=dtype))
