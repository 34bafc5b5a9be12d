"""One run: a target is warmed up, put under load, and what came of it is summed up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from carrara_services.bench.load import Record, Target, run_load, warm_up
from carrara_services.bench.summaries import Summary, summarize
from carrara_services.bench.workloads import ClosedLoop, Workload, warm_up_requests

WARM_UP_AT_ONCE = 16  # of arrivals that have no callers


@dataclass(frozen=True)
class Run:
    """What was asked for and what came of it."""

    workload: Workload
    records: list[Record]
    summary: Summary


async def measure(
    target: Target,
    workload: Workload,
    *,
    warm_up_count: int,
    timeout_seconds: float,
    in_time_seconds: float,
    on_record: Callable[[Record], None] = lambda _: None,
) -> Run:
    """Runs a workload.

    Args:
        warm_up_count: Requests before it that do not count.
        timeout_seconds: For each request.
        in_time_seconds: The latency up to which a picture counts as in time.
        on_record: Called with each record as its request ends.

    Raises:
        Exception: A request of the warm-up failed otherwise than by a refusal.
    """
    arrivals = workload.arrivals
    await warm_up(
        target,
        warm_up_requests(workload, count=warm_up_count),
        at_once=arrivals.callers if isinstance(arrivals, ClosedLoop) else WARM_UP_AT_ONCE,
        timeout_seconds=timeout_seconds,
    )
    records = await run_load(target, workload, timeout_seconds=timeout_seconds, on_record=on_record)
    names = [each.name for each in workload.classes]
    summary = summarize(records, class_names=names, in_time_seconds=in_time_seconds)
    return Run(workload, records, summary)
