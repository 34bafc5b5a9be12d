"""Memory that a device does not have."""

from __future__ import annotations

import gc

import torch

# What torch's allocator for the CPU says; the exception is a plain RuntimeError.
_ON_CPU = "DefaultCPUAllocator: can't allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is the device's memory that was too small."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _ON_CPU in str(error)
    )


def release_memory() -> None:
    """Gives back what torch keeps for later; call it when no traceback holds tensors any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
