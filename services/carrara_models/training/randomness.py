"""Random numbers that follow from the run's seed, a purpose and a place in the run alone.

So whoever computes an example, in whichever order and on whichever machine, draws the same; and a
resumed run needs no random state.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Draw(IntEnum):
    """What is drawn; each draws from random numbers of its own."""

    LIST = 0
    SHARDS = 1
    WINDOW = 2
    EXAMPLE = 3
    DROPOUT = 4
    NOISE = 5
    TIMESTEP = 6
    LATENT = 7
    LATENT_NOISE = 8
    CROP = 9
    NOISE_LEVEL = 10
    JITTER = 11
    JITTER_TURN = 12


def rng_of(seed: int, draw: Draw, *numbers: int) -> np.random.Generator:
    """Random numbers for one purpose, apart from every other's."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(draw, *numbers)))


def torch_generator_of(seed: int, draw: Draw, *numbers: int) -> torch.Generator:
    """As `rng_of`, for torch; on the CPU."""
    return torch.Generator().manual_seed(int(rng_of(seed, draw, *numbers).integers(2**63)))


def normal_of(seed: int, draw: Draw, positions: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers [len(positions), *shape], float32; each row by its own position."""
    return torch.stack(
        [
            torch.randn(*shape, generator=torch_generator_of(seed, draw, position))
            for position in positions
        ]
    )


def chosen_of(seed: int, draw: Draw, positions: Sequence[int], share: float) -> Tensor:
    """Which of the positions are drawn when each is with probability `share`; bool [len]."""
    return torch.tensor([bool(rng_of(seed, draw, p).random() < share) for p in positions])
