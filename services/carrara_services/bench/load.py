"""Sends requests to a target and notes when each was due, sent, under way and done.

What a target is, it does not know: Carrara's cascade, or any other that paints a `PaintRequest`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from carrara.results import StageUsage
from carrara_services.bench.workloads import ClosedLoop, PaintRequest, Workload, requests_of

# A caller of a closed loop whose request has failed, so that a target that refuses at once is not
# asked thousands of times a second.
PAUSE_AFTER_FAILURE_SECONDS = 0.1

Ending = Literal["painted", "refused", "timed out", "failed"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one request.

    Attributes:
        ending: "refused" is said by a target that is full; "failed" is all else that goes wrong.
        error: Of what was not painted.
        first_step_at: When the first step of the picture was known to be done, as
            `time.monotonic()`; None where the target does not tell.
        usage: What each stage spent on it; empty where the target does not tell.
        picture: uint8 [H, W, 3]; None of what was not painted.
    """

    ending: Ending
    error: Exception | None = None
    first_step_at: float | None = None
    usage: tuple[StageUsage, ...] = ()
    picture: NDArray[np.uint8] | None = None


class Target(Protocol):
    """What is put under load."""

    async def paint(self, request: PaintRequest, *, timeout_seconds: float) -> Outcome:
        """Paints one picture; many calls run at once.

        What the target answers, a refusal or a fault of its own, is an outcome and no exception.
        """


@dataclass(frozen=True)
class Record:
    """One request and its times, in seconds after the run's begin.

    Attributes:
        scheduled: When it was due. In an open loop that is drawn before the run, so that a request
            which is sent late, because the caller's machine is busy, counts the wait.
        first_step: None where it is unknown.
        error: Type and message of what was not painted.
    """

    request: PaintRequest
    scheduled: float
    sent: float
    first_step: float | None
    ended: float
    ending: Ending
    error: str | None
    usage: tuple[StageUsage, ...]

    @property
    def latency_seconds(self) -> float:
        """From when it was due to its end."""
        return self.ended - self.scheduled

    def to_json(self) -> dict[str, Any]:
        """An object for `json.dumps`."""
        return {
            "index": self.request.index,
            "class": self.request.class_name,
            "seed": self.request.seed,
            "prompt": self.request.prompt,
            "scheduled": round(self.scheduled, 6),
            "sent": round(self.sent, 6),
            "first_step": None if self.first_step is None else round(self.first_step, 6),
            "ended": round(self.ended, 6),
            "ending": self.ending,
            "error": self.error,
            "stages": [
                {
                    "stage": each.stage or each.role,
                    "attempts": each.attempts,
                    "call_ms": round(each.call_ms, 3),
                    "queue_ms": round(each.queue_ms, 3),
                    "running_ms": round(each.running_ms, 3),
                    "compute_ms": round(each.compute_ms, 3),
                }
                for each in self.usage
            ],
        }


async def warm_up(
    target: Target, requests: Sequence[PaintRequest], *, at_once: int, timeout_seconds: float
) -> None:
    """Has some requests painted that do not count; refusals are let pass.

    Raises:
        Exception: What the first request that timed out or failed ended with.
    """
    room = asyncio.Semaphore(at_once)

    async def one(request: PaintRequest) -> Outcome:
        async with room:
            return await target.paint(request, timeout_seconds=timeout_seconds)

    for outcome in await asyncio.gather(*map(one, requests)):
        if outcome.ending not in ("painted", "refused") and outcome.error is not None:
            raise outcome.error


async def run_load(
    target: Target,
    workload: Workload,
    *,
    timeout_seconds: float,
    on_record: Callable[[Record], None] = lambda _: None,
) -> list[Record]:
    """Runs a workload to its end, the last answer included.

    Args:
        timeout_seconds: For each request, from when it is sent.
        on_record: Called with each record as its request ends.

    Returns:
        The records in the order in which their requests ended.
    """
    requests = requests_of(workload)
    if workload.request_count is not None or not isinstance(
        workload.arrivals, ClosedLoop
    ):  # all that is known is drawn by now
        requests = iter(list(requests))
    records: list[Record] = []
    begin = time.monotonic()

    async def one(request: PaintRequest, scheduled: float) -> Record:
        sent = time.monotonic()
        outcome = await target.paint(request, timeout_seconds=timeout_seconds)
        first, error = outcome.first_step_at, outcome.error
        record = Record(
            request=request,
            scheduled=scheduled,
            sent=sent - begin,
            first_step=None if first is None else first - begin,
            ended=time.monotonic() - begin,
            ending=outcome.ending,
            error=None if error is None else f"{type(error).__name__}: {error}",
            usage=outcome.usage,
        )
        records.append(record)
        on_record(record)
        return record

    async def call_on_and_on() -> None:
        for request in requests:
            now = time.monotonic() - begin
            if workload.duration_seconds is not None and now >= workload.duration_seconds:
                return
            record = await one(request, now)
            if record.ending != "painted":
                await asyncio.sleep(PAUSE_AFTER_FAILURE_SECONDS)

    async with asyncio.TaskGroup() as group:
        if isinstance(workload.arrivals, ClosedLoop):
            for _ in range(workload.arrivals.callers):
                group.create_task(call_on_and_on())
        else:
            for request in requests:
                assert request.due_seconds is not None, "no caller has to become free"
                await asyncio.sleep(begin + request.due_seconds - time.monotonic())
                group.create_task(one(request, request.due_seconds))
    return records
