"""Makes a part fast. Its numbers then depend on what shares a batch, within a tolerance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from carrara_models.acceleration import in_openvino, in_torch, upsampling
from carrara_models.acceleration.networks import networks_of
from carrara_models.acceleration.tiles import use_tiles
from carrara_models.parts import Decoder, Denoiser, Numerics

Engine = Literal["torch", "compile", "openvino"]

# Of networks that are compiled for each number of rows.
ROW_BUCKETS = (1, 2, 4, 8, 16, 32)
# Of those that are recorded for each, which takes little. Not 1, for which torch compiles something
# of its own; even ones, as a job with guidance has two rows.
RECORDED_ROW_BUCKETS = tuple(range(2, 65, 2))


def best_precision(device: torch.device) -> torch.dtype:
    """What networks compute in where nobody says otherwise."""
    if device.type != "cpu":
        return torch.float16
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def engine_of(part: Any, engine: Engine) -> Engine:
    """What a part's networks run on where `engine` is asked for: only denoisers are compiled."""
    return engine if isinstance(part, Denoiser) else "torch"


def made_fast(part: Any, *, engine: Engine, tile_size: int, cache: Path | None = None) -> Any:
    """A part whose networks compute as they were loaded; what it takes and makes is float32.

    A text encoder stays as it is.

    Args:
        part: It is changed, and of no use any more.
        tile_size: Pixels a side of the tiles in which a decoder decodes larger pictures.
        cache: The folder where engines keep what they have compiled, which may hold pickles: the
            operator's own. None: OpenVINO keeps nothing, and torch in a place of its own.
    """
    engine = engine_of(part, engine)
    if isinstance(part, Denoiser):
        networks = list(networks_of(part).values())  # type: ignore[arg-type]
    elif isinstance(part, Decoder):
        for autoencoder in networks_of(part).values():  # type: ignore[arg-type]
            use_tiles(autoencoder, side=tile_size)
        # They decode by their own parts, not by a call.
        networks = [
            module
            for autoencoder in networks_of(part).values()  # type: ignore[arg-type]
            for name in ("post_quant_conv", "decoder")
            if isinstance(module := getattr(autoencoder, name, None), torch.nn.Module)
        ]
    else:
        return replace(part, numerics=Numerics(exact=False))
    if engine == "compile" and cache is not None:
        in_torch.keep_compiled(cache / "torch")
    for network in networks:
        if part.device.type == "cpu" and part.dtype in upsampling.QUICK_IN:
            upsampling.merge(network)
        if engine == "openvino":
            in_openvino.accelerate(
                network, precision=part.dtype, cache=cache and cache / "openvino"
            )
        else:
            in_torch.accelerate(network, precision=part.dtype, compiled=engine == "compile")
    buckets: tuple[int, ...] = ()
    if engine == "compile":
        buckets = ROW_BUCKETS if part.device.type == "cpu" else RECORDED_ROW_BUCKETS
    elif engine == "openvino" and len(networks) == 1:
        buckets = in_openvino.row_buckets(networks[0])
    numerics = Numerics(exact=False, row_buckets=buckets)
    return replace(part, dtype=torch.float32, numerics=numerics)
