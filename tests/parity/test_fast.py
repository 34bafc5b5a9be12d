"""Fast numerics stay near the exact ones: decoded pictures of every family, alone and in company."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

import chains
from carrara_models.acceleration.fast import made_fast
from families import CASES
from families.case import FamilyCase

# Of 255 levels, mean over a picture; tiny networks with random weights say more about rounding than
# trained ones, whose pictures forgive it.
TOLERANCE = {torch.float32: 0.05, torch.bfloat16: 6.0}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@functools.lru_cache(maxsize=1)
def exact(name: str) -> list[np.ndarray]:
    case = CASES[name]
    parts = chains.load_parts(case.folders)
    return [chains.paint(parts, settings) for settings in case.settings.values()]


def fast_parts(case: FamilyCase, precision: torch.dtype) -> list[Any]:
    parts = []
    for part in chains.load_parts(case.folders, dtype=precision):
        parts.append(made_fast(part, engine="torch"))
    return parts


@pytest.mark.parametrize("precision", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_fast_pictures_are_near_the_exact_ones(name: str, precision: torch.dtype) -> None:
    case = CASES[name]
    parts = fast_parts(case, precision)
    for settings, expected in zip(case.settings.values(), exact(name), strict=True):
        difference = np.abs(chains.paint(parts, settings).astype(int) - expected)
        print(f"DIFF {name} {precision} mean {difference.mean():.3f} max {difference.max()}")
        assert difference.mean() <= TOLERANCE[precision]
