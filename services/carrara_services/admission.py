"""Bounded admission: work waits in a line, is taken by a worker's thread, and reports to asyncio.

Knows nothing of what the work is; the denoising loop and the one-at-a-time worker take from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from carrara_services.refusals import DeadlineError, DrainingError, QueueFullError, StalledError
from carrara_services.watch import JobWatch, Outcome

# A worker that says nothing for so long is not healthy, although its thread computes: one call of a
# network takes less, or the stage is of no use.
STALL_SECONDS = 120.0
# One that says nothing and does not even compute hangs.
HANG_SECONDS = 3.0
# How often a worker without work says that it lives.
IDLE_BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Queued:
    """The work waits; position 1 is the next."""

    position: int


@dataclass(frozen=True)
class Progress:
    """A step is done."""

    step: int
    num_steps: int


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


Happening = Queued | Progress | Finished | Suspended | Failed

_OUTCOMES: Mapping[type, Outcome] = {
    Finished: "finished",
    Suspended: "suspended",
    Failed: "failed",
}

# What a task is cancelled with because the time of all that waited for it is over.
EXPIRED = "expired"


class Ticket:
    """One admitted piece of work, seen from the worker's thread and from the caller's.

    Attributes:
        abandoned: The caller has gone; the worker drops the work before its next step.
        expired: It has gone because its time was over.
    """

    def __init__(self, payload: Any, *, listener: Callable[[Happening], None]) -> None:
        self.payload, self.tell = payload, listener
        self.abandoned = self.expired = False
        self.submitted = time.perf_counter()
        self.taken: float | None = None
        self.compute_seconds = 0.0

    def usage(self, *, steps: int = 0, rows: int = 0) -> Usage:
        """What the work has cost until now."""
        now = time.perf_counter()
        taken = now if self.taken is None else self.taken
        return Usage(
            queue_ms=(taken - self.submitted) * 1e3,
            running_ms=(now - taken) * 1e3,
            compute_ms=self.compute_seconds * 1e3,
            steps=steps,
            rows=rows,
        )


class WaitingLine:
    """First come, first served, and bounded. All methods are safe from any thread.

    The worker that takes from it says what it is doing with `beat` and `leave`, so that load and
    health can be read without asking the worker's thread.

    Attributes:
        watch: Is told what becomes of each job; None counts nothing.
    """

    def __init__(self, *, max_jobs: int) -> None:
        self.max_jobs = max_jobs
        self.watch: JobWatch | None = None
        self._waiting: deque[Ticket] = deque()
        self._running: set[Ticket] = set()
        self._changed = threading.Condition()
        self._closed = self._dead = False
        self._seconds_per_job = 1.0  # until the first job has been measured
        self._pulse = _Pulse()

    def submit(self, payload: Any, *, listener: Callable[[Happening], None]) -> Ticket:
        """Admits work or refuses it at once.

        Args:
            listener: Called with what happens to the work, from the worker's thread or this one.

        Raises:
            QueueFullError: As many as may wait are waiting.
            DrainingError: The line is closed.
            StalledError: Nobody takes from the line any more.
        """
        ticket = Ticket(payload, listener=listener)
        with self._changed:
            if self._dead:
                raise StalledError
            if self._closed:
                raise DrainingError
            if len(self._waiting) >= self.max_jobs:
                raise QueueFullError(
                    len(self._waiting), retry_after_seconds=max(0.1, self._seconds_per_job)
                )
            self._waiting.append(ticket)
            ticket.tell(Queued(len(self._waiting)))
            self._changed.notify_all()
        return ticket

    def abandon(self, ticket: Ticket, *, expired: bool = False) -> None:
        """Gives work up: from the line at once, from a worker before its next step."""
        with self._changed:
            ticket.abandoned, ticket.expired = True, expired
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._count_end(ticket)
                self._tell_positions()
            self._changed.notify_all()

    def take(self, fits: Callable[[Ticket], bool] | None = None, *, wait: bool) -> Ticket | None:
        """Takes the next ticket.

        Args:
            fits: Whether the worker has room for the first; nobody overtakes one that has none.
            wait: Whether to wait for one. None then means that the line is closed and empty.
        """
        with self._changed:
            self._pulse.beat()
            while wait and not self._waiting and not self._closed:
                self._changed.wait(IDLE_BEAT_SECONDS)
                self._pulse.beat()
            if not self._waiting or (fits is not None and not fits(self._waiting[0])):
                return None
            ticket = self._waiting.popleft()
            ticket.taken = time.perf_counter()
            self._running.add(ticket)
            if self.watch is not None:
                self.watch.job_taken(queue_seconds=ticket.taken - ticket.submitted)
            self._tell_positions()
            return ticket

    def beat(self) -> None:
        """Says, from the worker's thread, that some work has just moved on."""
        self._pulse.beat()

    def leave(self, ticket: Ticket, end: Finished | Suspended | Failed | None = None) -> None:
        """Says that the worker is done with the ticket, and tells its caller how it ended.

        Args:
            end: None for work that its caller has abandoned.
        """
        with self._changed:
            self._running.discard(ticket)
            outcome = "finished" if end is None else _OUTCOMES[type(end)]
            if ticket.taken is not None and not ticket.abandoned and outcome != "suspended":
                seconds = time.perf_counter() - ticket.taken
                self._seconds_per_job += 0.2 * (seconds - self._seconds_per_job)
            # Counted first: who has been told finds it in the metrics.
            self._count_end(ticket, outcome)
            if end is not None:
                ticket.tell(end)
            self._changed.notify_all()

    def close(self) -> None:
        """Takes no more work, and hands back what waits, so that another replica can have it."""
        with self._changed:
            self._closed = True
            while self._waiting:
                ticket = self._waiting.popleft()
                self._count_end(ticket, "handed_back")
                ticket.tell(Failed(DrainingError()))
            self._changed.notify_all()

    def abort(self) -> None:
        """Says that the worker's thread ends by an error of its own: all its work fails."""
        with self._changed:
            self._dead = True
            for ticket in (*self._waiting, *self._running):
                self._count_end(ticket, "failed")
                ticket.tell(Failed(StalledError()))
            self._waiting.clear()
            self._running.clear()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether new work is refused."""
        return self._closed

    @property
    def queued(self) -> int:
        """How much work waits."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How much work has been taken and not yet left."""
        return len(self._running)

    @property
    def healthy(self) -> bool:
        """Whether the worker's thread lives and moves on, with work or without.

        Of a closed line it says nothing more: its thread may have ended in order.
        """
        return not self._dead and (self._closed or self._pulse.is_felt())

    def _count_end(self, ticket: Ticket, outcome: Outcome = "cancelled") -> None:
        """Counts a job that leaves; of one that was abandoned nobody gets what came of it."""
        if self.watch is None:
            return
        if ticket.abandoned:
            outcome = "expired" if ticket.expired else "cancelled"
        running_seconds = None if ticket.taken is None else time.perf_counter() - ticket.taken
        self.watch.job_ended(outcome, running_seconds=running_seconds)

    def _tell_positions(self) -> None:
        for position, ticket in enumerate(self._waiting, start=1):
            ticket.tell(Queued(position))


class _Pulse:
    """Tells a thread that is long about its work from one that hangs.

    A network's single call may take a minute. A thread in it uses its processor (one that waits for
    a GPU too: CUDA spins); one that hangs on a lock or a socket does not.
    """

    def __init__(self) -> None:
        self._last_beat = self._last_sign = time.monotonic()
        self._clock: int | None = None
        self._computed = 0.0

    def beat(self) -> None:
        """Says that the calling thread, always the same one, moves on."""
        if self._clock is None and hasattr(time, "pthread_getcpuclockid"):  # macOS has none
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._last_beat = self._last_sign = time.monotonic()

    def is_felt(self) -> bool:
        """Whether the thread has beaten or at least computed of late; asked about once a second."""
        now = time.monotonic()
        if self._clock is None:
            self._last_sign = now
        elif (computed := time.clock_gettime(self._clock)) > self._computed:
            self._computed, self._last_sign = computed, now
        return now - self._last_beat < STALL_SECONDS and now - self._last_sign < HANG_SECONDS


async def follow(
    line: WaitingLine, payload: Any, *, deadline: float | None, stage: str
) -> AsyncIterator[Queued | Progress | Finished | Suspended]:
    """Submits work and yields what happens to it, `Finished` or `Suspended` last.

    Leaving the iteration early, by cancellation too, abandons the work; being cancelled with
    `EXPIRED` says that its time was over. Close it for certain with `contextlib.aclosing`.

    Args:
        deadline: In the event loop's time; None for none.
        stage: Who is working, for the deadline's message.

    Raises:
        DeadlineError: The deadline passed; the message says where the work stood.
        QueueFullError, DrainingError, StalledError: The work was refused.
        Exception: Whatever the work itself raised.
    """
    loop = asyncio.get_running_loop()
    happenings: asyncio.Queue[Happening] = asyncio.Queue()

    def listen(happening: Happening) -> None:
        with contextlib.suppress(RuntimeError):  # the caller's event loop has closed meanwhile
            loop.call_soon_threadsafe(happenings.put_nowait, happening)

    ticket = line.submit(payload, listener=listen)
    progress: Progress | None = None
    expired = False
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    happening = await happenings.get()
            except TimeoutError:
                expired = True
                raise _deadline_error(stage, ticket, progress) from None
            if isinstance(happening, Failed):
                raise happening.error
            if isinstance(happening, Progress):
                progress = happening
            yield happening
            if isinstance(happening, Finished | Suspended):
                return
    except asyncio.CancelledError as cancelled:
        expired = cancelled.args == (EXPIRED,)
        raise
    finally:
        line.abandon(ticket, expired=expired)


def _deadline_error(stage: str, ticket: Ticket, progress: Progress | None) -> DeadlineError:
    if ticket.taken is None:
        return DeadlineError(f"in the queue of the {stage}")
    if progress is None:
        return DeadlineError(f"in the {stage}")
    return DeadlineError(
        f"in the {stage} after step {progress.step} of {progress.num_steps}", step=progress.step
    )


async def finished(
    line: WaitingLine, payload: Any, *, deadline: float | None, stage: str
) -> Finished:
    """Submits work that is never suspended and waits for its end; raises as `follow` does."""
    async with contextlib.aclosing(
        follow(line, payload, deadline=deadline, stage=stage)  # type: ignore[type-var]
    ) as happenings:
        async for happening in happenings:
            if isinstance(happening, Finished):
                return happening
    raise AssertionError("work ends with Finished or an error")
