"""What diffusers' own pipeline paints: every split, batched or served picture equals it."""

from __future__ import annotations

import functools
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
    pipeline = _load(folder, dtype)
    own = pipeline.scheduler
    class_name, overrides = SCHEDULERS[scheduler] if scheduler else (type(own).__name__, {})
    pipeline = StableDiffusionPipeline(
        **pipeline.components
        | {"scheduler": getattr(diffusers, class_name).from_config(own.config, **overrides)},
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    images = pipeline(prompt, generator=generator, output_type=output_type, **settings).images
    return images if output_type == "latent" else np.asarray(images[0])


@functools.lru_cache(maxsize=4)
def _load(folder: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, dtype=dtype)
