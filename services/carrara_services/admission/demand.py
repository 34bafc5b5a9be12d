"""What a piece of work asks of its worker."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """Higher ones are served first, however long lower ones have waited."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


@dataclass(frozen=True)
class Demand:
    """What a piece of work asks for.

    Attributes:
        cost: In the worker's own unit, in which its pace is told: rows x steps x pixels of a
            denoising loop, pixels of a decoder, texts of a text encoder.
        rows: Of those that the worker has at a time.
        priority: Within one, the earliest deadline comes first.
    """

    cost: float = 1.0
    rows: int = 1
    priority: Priority = Priority.NORMAL


PLAIN = Demand()
