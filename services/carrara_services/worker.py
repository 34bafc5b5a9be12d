"""One thread that does one piece of work at a time: for text encoders and for decoders."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from carrara_services.admission.happenings import Failed, Finished
from carrara_services.admission.line import WaitingLine

logger = logging.getLogger(__name__)


class Worker:
    """Calls `work` with each admitted payload, in order, in a thread of its own."""

    def __init__(
        self,
        work: Callable[[Any], Any],
        *,
        name: str,
        max_queue_jobs: int,
        max_queue_seconds: float = math.inf,
    ) -> None:
        self.line = WaitingLine(max_jobs=max_queue_jobs, max_seconds=max_queue_seconds)
        self._work = work
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Refuses new work, finishes what runs and waits for the thread's end."""
        self.line.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (ticket := self.line.take(wait=True)) is not None:
                began = time.perf_counter()
                try:
                    result = self._work(ticket.payload)
                except Exception as error:
                    self.line.leave(ticket, Failed(error))
                else:
                    ticket.compute_seconds = seconds = time.perf_counter() - began
                    self.line.tell_pace(rows=1, cost=ticket.demand.cost, seconds=seconds)
                    self.line.leave(ticket, Finished(result, ticket.usage()))
        except BaseException:
            logger.critical("the worker has ended", exc_info=True)
            self.line.abort()
