"""The shift of flow matching's sigmas that depends on how many tokens the picture is made of."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.flux.pipeline_flux import calculate_shift


def dynamic_shift(scheduler: Any, *, tokens: int) -> float:
    """The `mu` that pipelines set a scheduler's timesteps with (Sec. 5.3.2, Esser et al. 2024)."""
    config = scheduler.config
    return calculate_shift(
        tokens,
        config.base_image_seq_len,
        config.max_image_seq_len,
        config.base_shift,
        config.max_shift,
    )
