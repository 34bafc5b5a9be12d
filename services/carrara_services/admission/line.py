"""The line that work waits in: bounded by number and by time, the most urgent first."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

from carrara_services.admission.demand import PLAIN, Demand
from carrara_services.admission.happenings import (
    End,
    Failed,
    Finished,
    Happening,
    Progress,
    Queued,
    Suspended,
    Usage,
)
from carrara_services.admission.pace import Pace
from carrara_services.admission.pulse import Pulse
from carrara_services.refusals import DrainingError, QueueFullError, StalledError
from carrara_services.watch import JobWatch, Outcome

# How often a worker without work says that it lives.
IDLE_BEAT_SECONDS = 1.0
# What a caller who is refused is told before anything is known of the worker's pace.
FIRST_RETRY_SECONDS = 1.0
MIN_RETRY_SECONDS = 0.1
# Each job that begins moves all that wait: told at once, a long line keeps a processor busy.
POSITIONS_INTERVAL_SECONDS = 1.0

_OUTCOMES: Mapping[type, Outcome] = {
    Finished: "finished",
    Suspended: "suspended",
    Failed: "failed",
}


class Ticket:
    """One admitted piece of work, seen from the worker's thread and from the caller's.

    Attributes:
        urgency: The smallest is served first: by priority, then deadline, then arrival.
        share_done: Of the work, 0 to 1; the worker sets it.
        progress: The last step that is done, of work that has steps; the worker sets it.
        abandoned: The caller has gone; the worker drops the work before its next step.
        expired: It has gone because its time was over.
    """

    def __init__(
        self,
        payload: Any,
        *,
        listener: Callable[[Happening], None],
        demand: Demand,
        deadline: float,
        number: int,
    ) -> None:
        self.payload, self.tell, self.demand = payload, listener, demand
        self.urgency = (-demand.priority, deadline, number)
        self.share_done = 0.0
        self.progress: Progress | None = None
        self.abandoned = self.expired = False
        self.submitted = time.perf_counter()
        self.taken: float | None = None
        self.compute_seconds = 0.0

    @property
    def cost_left(self) -> float:
        """Of its demand."""
        return self.demand.cost * (1 - self.share_done)

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


class _Ahead:
    """What is done before some work: sums over tickets."""

    def __init__(self, tickets: Iterable[Ticket]) -> None:
        self.cost = self.cost_left = 0.0
        self.rows = 0
        for ticket in tickets:
            self.add(ticket)

    def add(self, ticket: Ticket) -> None:
        """Adds one more."""
        self.cost += ticket.demand.cost
        self.cost_left += ticket.cost_left
        self.rows += ticket.demand.rows


class WaitingLine:
    """The most urgent first, and bounded. All methods are safe from any thread.

    What is more urgent overtakes what waits, nothing what runs. Nobody overtakes by being small:
    work for which the worker has no room yet holds up all that is less urgent.

    The worker that takes from it says what it is doing with `beat` and `leave`, so that load and
    health can be read without asking the worker's thread.

    Attributes:
        max_jobs: How many may wait.
        max_seconds: How long the work that waits and runs may take, at the worker's pace, for more
            to be let in; where nothing waits, one is let in however long it takes.
        width: How many rows the worker has at a time.
        watch: Is told what becomes of each job; None counts nothing.
    """

    def __init__(self, *, max_jobs: int, max_seconds: float = math.inf, width: int = 1) -> None:
        self.max_jobs, self.max_seconds, self.width = max_jobs, max_seconds, width
        self.watch: JobWatch | None = None
        self._numbers = count()
        self._waiting: list[Ticket] = []
        self._running: set[Ticket] = set()
        self._changed = threading.Condition()
        self._closed = self._dead = False
        self._pace = Pace()
        self._pulse = Pulse()
        self._moved_from: int | None = None  # the first place whose ticket does not know of it
        self._tell_at = -math.inf

    def submit(
        self,
        payload: Any,
        *,
        listener: Callable[[Happening], None],
        demand: Demand = PLAIN,
        deadline: float | None = None,
    ) -> Ticket:
        """Admits work or refuses it at once.

        Args:
            deadline: By `time.monotonic`; None for none.
            listener: Called with what happens to the work, from the worker's thread or this one.

        Raises:
            QueueFullError: As many as may wait are waiting, or work for as long as may wait is, or
                the work could not be done by its deadline for what is before it.
            DrainingError: The line is closed.
            StalledError: Nobody takes from the line any more.
        """
        due = math.inf if deadline is None else deadline
        with self._changed:
            if self._dead:
                raise StalledError
            if self._closed:
                raise DrainingError
            number = next(self._numbers)
            ticket = Ticket(payload, listener=listener, demand=demand, deadline=due, number=number)
            place = bisect_right(self._waiting, ticket.urgency, key=lambda other: other.urgency)
            wait = self._wait(_Ahead([*self._running, *self._waiting[:place]]), demand)
            self._refuse_too_much(demand, wait=wait, due=due)
            self._waiting.insert(place, ticket)
            ticket.tell(Queued(place + 1, wait))
            self._note_moved(place + 1)
            self._changed.notify_all()
        return ticket

    def _refuse_too_much(self, demand: Demand, *, wait: float | None, due: float) -> None:
        if len(self._waiting) >= self.max_jobs:
            raise QueueFullError(
                f"{len(self._waiting)} jobs are waiting, which is the limit",
                retry_after_seconds=self._retry_after(
                    self._wait(_Ahead(self._running), self._waiting[0].demand)
                ),
            )
        backlog = self.backlog_seconds
        if self._waiting and backlog is not None and backlog > self.max_seconds:
            raise QueueFullError(
                f"the work that waits takes about {backlog:.1f} s, and the limit is "
                f"{self.max_seconds:g} s",
                retry_after_seconds=self._retry_after(backlog - self.max_seconds),
                limit="seconds",
            )
        own = self._pace.seconds(demand.cost)
        left = due - time.monotonic()
        if wait and own is not None and wait + own > left:
            raise QueueFullError(
                f"the deadline is in {left:.1f} s, and what comes before takes about {wait:.1f} s",
                retry_after_seconds=self._retry_after(wait + own - left),
                limit="deadline",
            )

    @staticmethod
    def _retry_after(seconds: float | None) -> float:
        return FIRST_RETRY_SECONDS if seconds is None else max(MIN_RETRY_SECONDS, seconds)

    def _wait(self, ahead: _Ahead, demand: Demand) -> float | None:
        """How many seconds work has to wait behind other work.

        It begins when the others leave room for it. What still runs then is about half done, and
        that half need not be waited for.
        """
        if not ahead.rows or ahead.rows + demand.rows <= self.width:
            return 0.0
        beside = max(self.width - demand.rows, 0)
        half_done = beside * ahead.cost / ahead.rows / 2
        return self._pace.seconds(max(ahead.cost_left - half_done, 0.0))

    def abandon(self, ticket: Ticket, *, expired: bool = False) -> None:
        """Gives work up: from the line at once, from a worker before its next step."""
        with self._changed:
            ticket.abandoned, ticket.expired = True, expired
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._count_end(ticket)
                self._note_moved()
            self._changed.notify_all()

    def tell_pace(self, *, rows: int, cost: float, seconds: float) -> None:
        """Says, from the worker's thread, how long it took for so much work at once."""
        with self._changed:
            self._pace.tell(rows=rows, cost=cost, seconds=seconds)

    def forget_pace(self) -> None:
        """Forgets how long work has taken: what a cold worker does says nothing of what comes."""
        with self._changed:
            self._pace = Pace()

    def seconds(self, cost: float) -> float | None:
        """How long so much work takes; None before the worker's pace is known."""
        return self._pace.seconds(cost)

    def take(
        self, fits: Callable[[Ticket], bool] | None = None, *, wait_seconds: float = 0.0
    ) -> Ticket | None:
        """Takes the next ticket.

        Args:
            fits: Whether the worker has room for the first; nobody overtakes one that has none.
            wait_seconds: How long to wait for one; infinite: until one comes, and None then means
                that the line is closed and empty.
        """
        until = time.monotonic() + wait_seconds
        with self._changed:
            self._pulse.beat()
            while not self._waiting and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, IDLE_BEAT_SECONDS))
                self._pulse.beat()
            if not self._waiting or (fits is not None and not fits(self._waiting[0])):
                return None
            ticket = self._waiting.pop(0)
            ticket.taken = time.perf_counter()
            self._running.add(ticket)
            if self.watch is not None:
                self.watch.job_taken(queue_seconds=ticket.taken - ticket.submitted)
            self._note_moved()
            return ticket

    def beat(self) -> None:
        """Says, from the worker's thread, that some work has just moved on."""
        self._pulse.beat()
        if self._moved_from is not None and time.monotonic() >= self._tell_at:
            with self._changed:
                self._tell_positions()

    def leave(self, ticket: Ticket, end: End | None = None) -> None:
        """Says that the worker is done with the ticket, and tells its caller how it ended.

        Args:
            end: None for work that its caller has abandoned.
        """
        with self._changed:
            self._running.discard(ticket)
            outcome = "finished" if end is None else _OUTCOMES[type(end)]
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
                ticket = self._waiting.pop(0)
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
    def backlog_seconds(self) -> float | None:
        """How long all that waits and runs takes; None before the worker's pace is known."""
        tickets = (*tuple(self._running), *tuple(self._waiting))
        return self._pace.seconds(sum(ticket.cost_left for ticket in tickets))

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

    def _note_moved(self, first: int = 0) -> None:
        """Notes that others stand in the places from `first` on, counted from 0."""
        self._moved_from = first if self._moved_from is None else min(first, self._moved_from)
        if time.monotonic() >= self._tell_at:
            self._tell_positions()

    def _tell_positions(self) -> None:
        """Tells those that have moved."""
        first, self._moved_from = self._moved_from, None
        if first is None or first >= len(self._waiting):
            return
        self._tell_at = time.monotonic() + POSITIONS_INTERVAL_SECONDS
        ahead = _Ahead([*self._running, *self._waiting[:first]])
        for place, ticket in enumerate(self._waiting[first:], start=first):
            ticket.tell(Queued(place + 1, self._wait(ahead, ticket.demand)))
            ahead.add(ticket)
