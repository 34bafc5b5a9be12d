"""How many rows a device has memory for, told from what the network takes for few."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Protocol

import torch

# Of what is free: the rest is for what jobs bring along, larger pictures, and holes between blocks.
USED_SHARE = 0.8


class DeviceMemory(Protocol):
    """What a device has, in bytes."""

    def free(self) -> int:
        """What tensors can still be given."""

    def peak_of(self, call: Callable[[], object]) -> int:
        """What a call takes at most, beyond what was taken before it."""


class CudaMemory:
    """Of a CUDA device, by torch's allocator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free(self) -> int:
        """What the driver has, and what torch keeps without using it."""
        free, _ = torch.cuda.mem_get_info(self._device)
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return free + kept

    def peak_of(self, call: Callable[[], object]) -> int:
        """What a call takes at most, beyond what was taken before it."""
        gc.collect()
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        call()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before


def rows_that_fit(
    call: Callable[[int], object], *, memory: DeviceMemory, rows: int, most: int
) -> int:
    """Finds how many rows may share a call: a call's memory grows evenly with them.

    Args:
        call: Calls the network once with so many rows; called twice, after a first call has made
            what stays.
        rows: Of one job. The result is at least this, as a job is not divided.
        most: The result is at most this.
    """
    call(rows)
    one, two = memory.peak_of(lambda: call(rows)), memory.peak_of(lambda: call(2 * rows))
    per_row = (two - one) / rows
    if per_row <= 0:
        return most
    fixed = max(0.0, one - per_row * rows)
    return int(min(max(rows, (USED_SHARE * memory.free() - fixed) // per_row), most))
