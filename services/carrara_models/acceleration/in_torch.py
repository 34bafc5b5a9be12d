"""Networks on torch's own kernels: channels last, in any precision, compiled if wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

# Of shapes of one network; torch gives up beyond it, and its own limit is 8.
MAX_COMPILED_SHAPES = 64
# Arguments of networks whose size depends on the text encoder, and in which axis.
_TOKENS = {
    "encoder_hidden_states": 1,
    "encoder_attention_mask": 1,
    "attention_mask": 1,
    "txt_ids": 0,
}


def accelerate(network: torch.nn.Module, *, precision: torch.dtype, compiled: bool) -> None:
    """Has a network, whose weights are of `precision`, take and give float32.

    Its convolutions work channels last, as their fast kernels want it.

    Args:
        compiled: By torch.compile, for the shapes that it meets inside `compiling`.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        network.forward = CompiledForward(network.forward)  # type: ignore[method-assign]

    def before(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return _mapped(arguments, precision), _mapped(named, precision)

    def after(_: Any, __: Any, output: Any) -> Any:
        return _mapped(output, torch.float32)

    network.register_forward_pre_hook(before, with_kwargs=True)
    network.register_forward_hook(after)


class CompiledForward:
    """A network's forward, compiled for the shapes of its warm-up, and eager for others.

    To compile takes up to minutes, in which a stage would answer nobody. The number of tokens is
    left open.

    Attributes:
        compiles: Whether shapes that it has not met are compiled.
    """

    def __init__(self, eager: Callable[..., Any]) -> None:
        self.compiles = False
        self._eager = eager
        self._compiled = torch.compile(eager, dynamic=False)
        self._shapes: set[tuple[Any, ...]] = set()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Computes as the network does."""
        shapes = tuple(_shapes((arguments, named)))
        if self.compiles:
            self._shapes.add(shapes)
            for name, axis in _TOKENS.items():
                if isinstance(named.get(name), torch.Tensor):
                    torch._dynamo.mark_dynamic(named[name], axis)
        chosen = self._compiled if shapes in self._shapes else self._eager
        return chosen(*arguments, **named)


@contextlib.contextmanager
def compiling(networks: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Compiles, while entered, whatever shapes the networks are called with."""
    forwards = [each.forward for each in networks if isinstance(each.forward, CompiledForward)]
    torch._dynamo.config.recompile_limit = MAX_COMPILED_SHAPES
    for forward in forwards:
        forward.compiles = True
    try:
        yield
    finally:
        for forward in forwards:
            forward.compiles = False


def _shapes(value: Any, *, without: int | None = None) -> Iterator[Any]:
    """Of all tensors in a call, but for their axis of tokens, and whatever else it says."""
    if isinstance(value, torch.Tensor):
        yield value.dtype
        yield from (size for axis, size in enumerate(value.shape) if axis != without)
    elif isinstance(value, dict):
        for name in sorted(value):
            yield name
            yield from _shapes(value[name], without=_TOKENS.get(name))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _shapes(each)
    else:
        yield value


def _mapped(value: Any, dtype: torch.dtype) -> Any:
    """Real tensors in another dtype, pictures channels last; inside tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            return value
        layout = torch.channels_last if value.ndim == 4 else torch.preserve_format
        return value.to(dtype, memory_format=layout)
    if isinstance(value, dict):
        return {name: _mapped(each, dtype) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(each, dtype) for each in value)
    return value
