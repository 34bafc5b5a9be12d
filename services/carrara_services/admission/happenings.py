"""What is told of a piece of work, from its place in the line to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Queued:
    """The work waits.

    Attributes:
        position: 1 is the next.
        expected_wait_seconds: Until it is taken, as far as that can be told; None before the
            worker's pace is known.
    """

    position: int
    expected_wait_seconds: float | None = None


@dataclass(frozen=True)
class Progress:
    """A step is done."""

    step: int
    num_steps: int


@dataclass(frozen=True, eq=False)
class Preview:
    """What the work looks like; who has not read it when the next one comes gets that one alone.

    Attributes:
        step: Steps done.
        image: uint8 [h, w, 3].
    """

    step: int
    image: np.ndarray


@dataclass(frozen=True)
class Usage:
    """What the work cost.

    Attributes:
        running_ms: From leaving the line to the result.
        compute_ms: Its share, by rows, of every batch that it was in.
        rows: Of the network's batches, summed over steps.
    """

    queue_ms: float
    running_ms: float
    compute_ms: float
    steps: int = 0
    rows: int = 0


@dataclass(frozen=True)
class Finished:
    """The work is done."""

    result: Any
    usage: Usage


@dataclass(frozen=True)
class Suspended:
    """The work was taken down in the midst of it, to go on elsewhere."""

    state: Any
    usage: Usage


@dataclass(frozen=True)
class Failed:
    """The work ended with an error; its neighbours go on."""

    error: BaseException


End = Finished | Suspended | Failed
UnderWay = Queued | Progress | Preview
Happening = UnderWay | End
