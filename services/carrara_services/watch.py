"""Who is told what happens to a stage's jobs, to count it. Knows nothing of who counts, or how."""

from __future__ import annotations

from typing import Literal, Protocol

Outcome = Literal["finished", "failed", "cancelled", "expired", "handed_back", "suspended"]


class JobWatch(Protocol):
    """Counts jobs. Called from any thread while the line is locked, so it may not wait."""

    def job_taken(self, *, queue_seconds: float) -> None:
        """The worker has taken a job from the line."""

    def job_ended(self, outcome: Outcome, *, running_seconds: float | None) -> None:
        """A job has left; `running_seconds` is None for one that was never taken."""


class TickWatch(Protocol):
    """Counts ticks, in the worker's thread.

    A tick is one network call for one group of jobs: of a denoising loop with the scheduler step of
    each, of a decoder all of their work.
    """

    def __call__(self, *, seconds: float, jobs: int, rows: int) -> None: ...  # noqa: D102
