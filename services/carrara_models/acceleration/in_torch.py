"""Networks on torch's own kernels: channels last, in any precision, compiled if wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from carrara_models.acceleration.calls import cast, named_tensors, open_axes
from carrara_models.acceleration.cuda_graphs import Replayed
from carrara_models.acceleration.warm_up import Forward, WarmedForward

# Of shapes of one network; torch gives up beyond it, and its own limit is 8.
MAX_COMPILED_SHAPES = 64


def accelerate(network: torch.nn.Module, *, precision: torch.dtype, compiled: bool) -> None:
    """Has a network, whose weights are of `precision`, take and give float32.

    Its convolutions work channels last, as their fast kernels want it.

    Args:
        compiled: By torch.compile, for the shapes that it meets in its warm-up. On a GPU those
            are of any number of rows but 1, and its calls are replayed as CUDA graphs.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        on_gpu = next(network.parameters()).is_cuda
        network.forward = _compiled(network.forward, on_gpu=on_gpu)  # type: ignore[method-assign]

    def before(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return cast(arguments, precision), cast(named, precision)

    def after(_: Any, __: Any, output: Any) -> Any:
        return cast(output, torch.float32)

    network.register_forward_pre_hook(before, with_kwargs=True)
    network.register_forward_hook(after)


def keep_compiled(folder: Path) -> None:
    """Has torch.compile keep kernels and graphs there, and look there for those of earlier starts.

    It reads the folder's name from the environment alone, and pickles from the folder.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _compiled(eager: Forward, *, on_gpu: bool) -> WarmedForward:
    torch._dynamo.config.recompile_limit = MAX_COMPILED_SHAPES
    compiled = torch.compile(eager, dynamic=False)

    def ready(arguments: tuple[Any, ...], named: dict[str, Any]) -> Forward:
        for name, tensor in named_tensors((arguments, named)):
            tokens = open_axes(name, any_rows=False)
            for axis in tokens:
                torch._dynamo.mark_dynamic(tensor, axis)
            for axis in open_axes(name, any_rows=on_gpu) - tokens:
                # If torch cannot leave them open, each number of rows is compiled by itself.
                torch._dynamo.maybe_mark_dynamic(tensor, axis)
        return Replayed(compiled) if on_gpu else compiled  # type: ignore[no-any-return]

    return WarmedForward(eager, ready=ready, any_rows=on_gpu)
