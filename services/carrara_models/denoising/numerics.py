"""Exact numerics: a batch in which each request's numbers are those it would have alone.

On the CPU, matrix products and convolutions choose their blocking by the size of the batch, and so
round differently in company. Kernels of activations take numbers in full vectors and the rest one
by one, with other last bits; which side of that line a number falls on depends on the batch, and on
how threads divide it. Everything else (norms, attention, sums) works row by row. So inside
`exact_rows`, these run once per request, on just its rows, and all else runs batched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PRODUCTS = frozenset({functional.linear, functional.conv2d})
# Those of torch whose last bits were seen to differ; of GELU only the approximation does.
ACTIVATIONS = frozenset(
    {
        functional.silu,
        functional.gelu,
        functional.mish,
        functional.softplus,
        functional.sigmoid,
        torch.sigmoid,
        torch.Tensor.sigmoid,
    }
)
CHUNKED = PRODUCTS | ACTIVATIONS


class exact_rows(TorchFunctionMode):
    """Runs what rounds in company in chunks of one request, in this thread, while entered.

    Args:
        rows: How many rows of the batch each request has, in the batch's order.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__()
        self._rows = list(rows)
        self._total = sum(rows)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if len(self._rows) == 1 or function not in CHUNKED:
            return function(*args, **kwargs)
        batch, *rest = args or (kwargs.pop("input"),)
        # A layer may see several rows per row of the batch, such as one per attention head.
        multiple, remainder = divmod(batch.shape[0], self._total)
        if remainder or not multiple:
            if function in ACTIVATIONS:  # of what is no batch, such as a parameter
                return function(batch, *rest, **kwargs)
            raise RuntimeError(
                f"exact numerics need a multiple of {self._total} rows, not {tuple(batch.shape)}"
            )
        sizes = [multiple * count for count in self._rows]
        return torch.cat([function(chunk, *rest, **kwargs) for chunk in batch.split(sizes)])
