"""What diffusers' own pipeline paints: the truth that every split, batched or served picture equals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from carrara_models.denoising.schedulers import SCHEDULERS


def paint_with_diffusers(
    folder: Path,
    prompt: str,
    *,
    seed: int,
    scheduler: str | None = None,
    dtype: torch.dtype = torch.float32,
    output_type: str = "pil",
    **settings: Any,
) -> Any:
    """Paints one image with `StableDiffusionPipeline`, loaded whole, in this process.

    Args:
        scheduler: One of the ten names; None = the checkpoint's own.
        output_type: As the pipeline's; "latent" for what the VAE would be given.
        settings: Further arguments of the pipeline's call.

    Returns:
        uint8 [H, W, 3], or latents [1, C, h, w].
    """
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        class_name, overrides = SCHEDULERS[scheduler]
        scheduler_class = getattr(diffusers, class_name)
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **overrides)
    generator = torch.Generator("cpu").manual_seed(seed)
    images = pipeline(prompt, generator=generator, output_type=output_type, **settings).images
    return images if output_type == "latent" else np.asarray(images[0])
