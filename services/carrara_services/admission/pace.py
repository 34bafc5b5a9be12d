"""How fast a worker is, from what it has just done, and how long work has to wait at that pace."""

from __future__ import annotations

# What a measurement still counts when the next one of its kind comes.
KEPT = 0.9


class Pace:
    """Cost per second, kept apart by how full the worker was: a full batch is faster by the row."""

    def __init__(self) -> None:
        self._measured: dict[int, tuple[float, float]] = {}

    def tell(self, *, rows: int, cost: float, seconds: float) -> None:
        """Takes down what some rows have cost together, and how long it took."""
        kind = rows.bit_length()
        costs, times = self._measured.get(kind, (0.0, 0.0))
        self._measured[kind] = (KEPT * costs + cost, KEPT * times + seconds)

    @property
    def cost_per_second(self) -> float | None:
        """Of the fullest batch that it has seen, as in one the work that waits is done.

        None before anything was measured.
        """
        if not self._measured:
            return None
        costs, times = self._measured[max(self._measured)]
        return costs / times if times > 0 and costs > 0 else None

    def seconds(self, cost: float) -> float | None:
        """How long so much work takes; None before anything was measured."""
        pace = self.cost_per_second
        return None if pace is None else cost / pace
