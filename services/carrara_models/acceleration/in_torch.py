"""Networks on torch's own kernels: channels last, in a chosen precision, compiled if wanted."""

from __future__ import annotations

from typing import Any

import torch


def accelerate(network: torch.nn.Module, *, precision: torch.dtype, compiled: bool) -> None:
    """Has a network compute in `precision`, whatever it is given, and give float32.

    Convolutions then work channels last, as their fast kernels want it.

    Args:
        compiled: By torch.compile, anew for each shape.
    """
    network.to(precision).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def before(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return _mapped(arguments, precision), _mapped(named, precision)

    def after(_: Any, __: Any, output: Any) -> Any:
        return _mapped(output, torch.float32)

    network.register_forward_pre_hook(before, with_kwargs=True)
    network.register_forward_hook(after)
    if compiled:
        network.compile(dynamic=False)


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
