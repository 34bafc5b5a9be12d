"""Makes a part fast. Its numbers then depend on what shares a batch, within a tolerance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch

from carrara_models.acceleration import in_torch
from carrara_models.acceleration.networks import networks_of
from carrara_models.parts import Decoder, Denoiser, Numerics

Engine = Literal["torch", "compile", "openvino"]
ENGINES: tuple[Engine, ...] = ("torch", "compile", "openvino")

# Of networks that are compiled for each shape.
ROW_BUCKETS = (1, 2, 4, 8, 16, 32)


def best_precision(device: torch.device) -> torch.dtype:
    """What networks compute in where nobody says otherwise."""
    if device.type != "cpu":
        return torch.float16
    capable = torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_bfloat16()
    return torch.bfloat16 if capable else torch.float32


def made_fast(part: Any, *, engine: Engine, precision: torch.dtype) -> Any:
    """A part whose networks compute in `precision`; what it takes and makes stays float32.

    Args:
        part: In float32. It may be changed, and be of no use any more.
    """
    compiled = engine == "compile"
    if isinstance(part, Denoiser):
        for network in networks_of(part).values():  # type: ignore[arg-type]
            in_torch.accelerate(network, precision=precision, compiled=compiled)
    elif isinstance(part, Decoder):
        for autoencoder in networks_of(part).values():  # type: ignore[arg-type]
            _accelerate_decoding(autoencoder, precision=precision, compiled=compiled)
    buckets = ROW_BUCKETS if compiled else ()
    return replace(part, numerics=Numerics(exact=False, row_buckets=buckets))


def _accelerate_decoding(
    autoencoder: torch.nn.Module, *, precision: torch.dtype, compiled: bool
) -> None:
    """What comes after the latents: autoencoders decode by their parts, not by a call."""
    for name in ("post_quant_conv", "decoder"):
        module = getattr(autoencoder, name, None)
        if isinstance(module, torch.nn.Module):
            in_torch.accelerate(module, precision=precision, compiled=compiled)


def _has_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
