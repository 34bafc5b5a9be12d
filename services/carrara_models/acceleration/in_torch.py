"""Networks on torch's own kernels: channels last, in any precision, compiled if wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from carrara_models.acceleration.calls import TOKENS, cast
from carrara_models.acceleration.warm_up import Forward, WarmedForward

# Of shapes of one network; torch gives up beyond it, and its own limit is 8.
MAX_COMPILED_SHAPES = 64


def accelerate(network: torch.nn.Module, *, precision: torch.dtype, compiled: bool) -> None:
    """Has a network, whose weights are of `precision`, take and give float32.

    Its convolutions work channels last, as their fast kernels want it.

    Args:
        compiled: By torch.compile, for the shapes that it meets in its warm-up.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        network.forward = _compiled(network.forward)  # type: ignore[method-assign]

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


def _compiled(eager: Forward) -> WarmedForward:
    torch._dynamo.config.recompile_limit = MAX_COMPILED_SHAPES
    compiled = torch.compile(eager, dynamic=False)

    def ready(_: tuple[Any, ...], named: dict[str, Any]) -> Forward:
        for name, axis in TOKENS.items():
            if isinstance(named.get(name), torch.Tensor):
                torch._dynamo.mark_dynamic(named[name], axis)
        return compiled  # type: ignore[no-any-return]

    return WarmedForward(eager, ready=ready)
