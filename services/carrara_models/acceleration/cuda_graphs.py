"""Calls of a network as CUDA graphs: all its kernels launched at once, not one by one.

At few rows a GPU is done with a kernel before the CPU has launched the next. torch.compile can do
it too (`mode="reduce-overhead"`), but what it records belongs to the thread that compiled; here one
thread makes a network ready and another one runs it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from carrara_models.acceleration.calls import kind_of, mapped, named_tensors, sizes_of
from carrara_models.acceleration.warm_up import Forward

# Of one network; what comes beyond them is launched kernel by kernel.
MAX_GRAPHS = 256


@dataclass(frozen=True)
class _Graph:
    """A call's kernels, with the memory that they read and write.

    Attributes:
        inputs: All tensors of the call, in the order of `named_tensors`.
        output: As the network gives it; the next replay writes over it.
    """

    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    output: Any


class Replayed:
    """A forward on a CUDA device that replays the calls of shapes that it has met before.

    The first call of a shape runs as it is, and so brings into being all that it needs; the second
    is recorded. Graphs of one network share their memory, as no two of them run at a time.

    Args:
        forward: Does the same whenever it gets tensors of the same shapes.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._graphs: dict[Hashable, _Graph | None] = {}  # None: met once
        self._pool: Any = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Computes as `forward` does."""
        call = (arguments, named)
        kind = (kind_of(call, any_rows=False), sizes_of(call))
        if kind not in self._graphs:
            if len(self._graphs) < MAX_GRAPHS:
                self._graphs[kind] = None
            return self._forward(*arguments, **named)
        graph = self._graphs[kind]
        if graph is None:
            graph = self._graphs[kind] = self._recorded(call)
        for kept, (_, given) in zip(graph.inputs, named_tensors(call), strict=True):
            kept.copy_(given)
        graph.graph.replay()
        return mapped(graph.output, torch.clone)

    def _recorded(self, call: Any) -> _Graph:
        kept = mapped(call, torch.clone)
        arguments, named = kept
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # Other threads of the process may go on to use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = self._forward(*arguments, **named)
        return _Graph(graph, [tensor for _, tensor in named_tensors(kept)], output)
