"""What a family's tests are made of: tiny checkpoints, diffusers' chain, and settings to try."""

from __future__ import annotations

import atexit
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class FamilyCase:
    """One family.

    Attributes:
        name: Of the case, for the tests' names.
        checkpoints: Writes each tiny checkpoint into an empty folder, in the order of the image's
            way; mostly one.
        oracle: Paints with diffusers' pipelines, loaded whole, in this process, one random
            generator running through all of them. Gets the folders and the settings; gives uint8
            [H, W, 3].
        settings: By a name for each. The arguments of `Cascade.generate`, `prompt` and `seed`
            included. They cover two schedulers where there is a choice, guidance on and off, and
            two sizes where there is a choice; step counts are small and unequal.
        stages: Of all checkpoints: the stage's name and what it loads, as Describe tells it.
    """

    name: str
    checkpoints: Sequence[Callable[[Path], None]]
    oracle: Callable[[Sequence[Path], Settings], np.ndarray]
    settings: Mapping[str, Settings]
    stages: Mapping[str, Sequence[str]]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The checkpoints, written once in this process and not to be changed."""
        return tuple(
            _written(write, f"{self.name}-{i}") for i, write in enumerate(self.checkpoints)
        )


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="carrara-families-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return folder


@functools.cache
def _written(write: Callable[[Path], None], name: str) -> Path:
    folder = Path(_root().name) / name
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(20)
        write(folder)
    return folder


def to_uint8(images: np.ndarray | torch.Tensor) -> np.ndarray:
    """Rounds one picture of a pipeline's output "np", [1, H, W, 3] in [0, 1], as it does itself."""
    return (np.asarray(images)[0] * 255).round().astype(np.uint8)
