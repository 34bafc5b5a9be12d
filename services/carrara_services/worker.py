"""One thread that does pieces of work, alike ones together: for text encoders and for decoders."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from carrara_services.admission.happenings import Failed, Finished
from carrara_services.admission.line import Ticket, WaitingLine
from carrara_services.device_memory import is_out_of_memory, release_memory
from carrara_services.refusals import TooLargeError
from carrara_services.watch import TickWatch

logger = logging.getLogger(__name__)


class Worker:
    """Calls `work` with admitted payloads, the most urgent first, in a thread of its own.

    The most urgent is done with those behind it that are of its group; where another comes between
    them, that one is not overtaken. What one payload raises is its own.

    Args:
        work: Payloads of one group to what came of each, in order: a result, or what went wrong
            with that one.
        group: Payloads of equal groups may be done together.
        max_wait_seconds: How long the first waits for others to join it.

    Attributes:
        line: Where its work waits.
        max_batch: How many at a time; fewer from when they were too many for the device's memory.
        watch: Is told of each batch that begins from when it is set; None counts nothing.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        name: str,
        max_queue_jobs: int,
        max_queue_seconds: float = math.inf,
        group: Callable[[Any], Hashable] = lambda _: None,
        max_batch: int = 1,
        max_wait_seconds: float = 0.0,
    ) -> None:
        # Of width 1: who comes while some are done together waits for all of them.
        self.line = WaitingLine(max_jobs=max_queue_jobs, max_seconds=max_queue_seconds)
        self.max_batch = max_batch
        self.watch: TickWatch | None = None
        self._work, self._group = work, group
        self._max_wait_seconds = max_wait_seconds
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Refuses new work, finishes what runs and waits for the thread's end."""
        self.line.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (first := self.line.take(wait_seconds=math.inf)) is not None:
                self._do([first, *self._joining(first)])
        except BaseException:
            logger.critical("the worker has ended", exc_info=True)
            self.line.abort()

    def _joining(self, first: Ticket) -> list[Ticket]:
        """Who is done together with the first."""
        joining: list[Ticket] = []
        group = self._group(first.payload)
        until = time.monotonic() + self._max_wait_seconds
        while len(joining) + 1 < self.max_batch:
            left = max(0.0, until - time.monotonic())
            ticket = self.line.take(
                lambda other: self._group(other.payload) == group, wait_seconds=left
            )
            if ticket is None:
                break
            joining.append(ticket)
        return joining

    def _do(self, tickets: Sequence[Ticket]) -> None:
        failure = self._attempt(tickets)
        if failure is None:
            return
        if is_out_of_memory(failure):
            self._do_in_less_memory(tickets)
        elif len(tickets) == 1:
            self.line.leave(tickets[0], Failed(failure))
        else:
            logger.warning("%d pieces of work failed, trying each", len(tickets), exc_info=failure)
            for ticket in tickets:
                self._do([ticket])

    def _do_in_less_memory(self, tickets: Sequence[Ticket]) -> None:
        """After an attempt for which memory was too small: half as many from now on."""
        release_memory()
        if len(tickets) > 1:
            half = len(tickets) // 2
            self.max_batch = min(self.max_batch, half)
            logger.warning("out of memory with %d: at most %d from now on", len(tickets), half)
            for begin in range(0, len(tickets), half):
                self._do(tickets[begin : begin + half])
            return
        failure = self._attempt(tickets)  # once more, in what has been released
        if failure is not None:
            too_large = is_out_of_memory(failure)
            self.line.leave(tickets[0], Failed(TooLargeError() if too_large else failure))

    def _attempt(self, tickets: Sequence[Ticket]) -> Exception | None:
        """Does work of one group; gives the error if nothing came of it."""
        watch = self.watch  # now: what began before anybody watched is not theirs
        began = time.perf_counter()
        try:
            results = self._work([ticket.payload for ticket in tickets])
        except Exception as error:
            # Without its traceback, which keeps the tensors of the call.
            return error.with_traceback(None) if is_out_of_memory(error) else error
        seconds = time.perf_counter() - began
        cost = sum(ticket.demand.cost for ticket in tickets)
        self.line.tell_pace(rows=len(tickets), cost=cost, seconds=seconds)
        if watch is not None:
            watch(seconds=seconds, jobs=len(tickets), rows=len(tickets))
        for ticket, result in zip(tickets, results, strict=True):
            ticket.compute_seconds += seconds / len(tickets)
            failed = isinstance(result, Exception)
            end = Failed(result) if failed else Finished(result, ticket.usage())
            self.line.leave(ticket, end)
        return None
