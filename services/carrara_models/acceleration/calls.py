"""What a network is called with: tensors inside tuples, lists and mappings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

# Arguments whose size depends on the text encoder, and in which axis.
TOKENS = {
    "encoder_hidden_states": 1,
    "encoder_attention_mask": 1,
    "attention_mask": 1,
    "txt_ids": 0,
}
# Those that all rows of a batch share; of all others, the first axis is the rows'.
WITHOUT_ROWS = frozenset({"txt_ids", "img_ids"})


def open_axes(name: str | None, *, any_rows: bool) -> set[int]:
    """In which axes an argument may have any size; `name` is None where it has none."""
    axes = {TOKENS[name]} if name in TOKENS else set()
    return axes | {0} if any_rows and name not in WITHOUT_ROWS else axes


def named_tensors(value: Any, name: str | None = None) -> Iterator[tuple[str | None, torch.Tensor]]:
    """All tensors, in an order of their own, each with its name in the mapping that it is in."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from named_tensors(value[key], key)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from named_tensors(each)


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same with other tensors; `change` gets them in the order of `named_tensors`."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(value[key], change) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return type(value)(mapped(each, change) for each in value)
    return value


def cast(value: Any, dtype: torch.dtype) -> Any:
    """The same with real tensors in another dtype, and pictures channels last."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        return tensor.to(dtype, memory_format=layout)

    return mapped(value, change)


def kind_of(value: Any, name: str | None = None, *, any_rows: bool) -> tuple[Any, ...]:
    """What calls have in common that one compiled network will do for.

    The types and sizes of all tensors, but for open axes, and whatever else the call says.
    """
    if isinstance(value, torch.Tensor):
        free = open_axes(name, any_rows=any_rows)
        sizes = (None if axis in free else size for axis, size in enumerate(value.shape))
        return (value.dtype, *sizes)
    if isinstance(value, dict):
        return tuple((key, kind_of(value[key], key, any_rows=any_rows)) for key in sorted(value))
    if isinstance(value, tuple | list):
        return tuple(kind_of(each, any_rows=any_rows) for each in value)
    return (value,)


def rows_of(call: Any) -> int:
    """How many rows a call has."""
    return next(tensor.shape[0] for name, tensor in named_tensors(call) if name not in WITHOUT_ROWS)


def sizes_of(value: Any) -> tuple[torch.Size, ...]:
    """The sizes of all tensors, in the order of `named_tensors`."""
    return tuple(tensor.shape for _, tensor in named_tensors(value))
