"""What a run's records come to: rates, percentiles, refusals, and where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from carrara.results import StageUsage
from carrara_services.bench.load import Record

ALL = "all"
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Quantiles:
    """Of some times, in seconds; between two of them, percentiles lie on a line."""

    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class ClassSummary:
    """What became of the requests of one class, or of all.

    Attributes:
        painted_in_time: Those of the painted whose latency kept to the aim.
        failed: How many ended with each kind of error.
        latency: Of painted requests, from when each was due; None where there is none.
        first_step: Likewise, to the end of the picture's first step.
        refusal: Of refused requests, from when each was sent: how long a "no" takes.
    """

    name: str
    offered: int
    painted: int
    painted_in_time: int
    refused: int
    timed_out: int
    failed: Mapping[str, int]
    latency: Quantiles | None
    first_step: Quantiles | None
    refusal: Quantiles | None


@dataclass(frozen=True)
class StageTime:
    """What one stage spent on all painted requests.

    Attributes:
        stage: Its name in the family, else its role.
        attempts: Calls made to it.
        call_ms: From the calls to their results as the caller saw it; summed over requests, and so
            the following.
        running_ms: From leaving the queue to the result; work that shares a batch counts for each.
        compute_ms: Each request's share of the batches that it was in.
    """

    stage: str
    attempts: int
    call_ms: float
    queue_ms: float
    running_ms: float
    compute_ms: float


@dataclass(frozen=True)
class Summary:
    """A run.

    Attributes:
        seconds: From the first request's due time to the last answer.
        images_per_second: Painted, of all that time.
        images_in_time_per_second: Likewise those that kept to the aim: the goodput.
        classes: All requests first, under the name "all"; then each class.
        sent_late: How much later than due requests were sent: a caller's machine that is too busy.
        stages: In the order of the chain; empty where the target tells nothing.
        called: Share of the painted requests' time, from sent to ended, that calls of stages took;
            None without stages. The rest is the caller's own. Text encoders that run side by side
            count twice.
        explained: Share of that time in which requests waited or ran in a stage. What is between
            both is messages and lost attempts.
        computed: Share of that time that stages computed for the request itself.
    """

    seconds: float
    images_per_second: float
    images_in_time_per_second: float
    classes: tuple[ClassSummary, ...]
    sent_late: Quantiles | None
    stages: tuple[StageTime, ...]
    called: float | None
    explained: float | None
    computed: float | None

    @property
    def all(self) -> ClassSummary:
        """Of all requests."""
        return self.classes[0]

    def to_json(self) -> dict[str, Any]:
        """An object for `json.dumps`."""
        return asdict(self)


def summarize(
    records: Sequence[Record], *, class_names: Iterable[str], in_time_seconds: float
) -> Summary:
    """Sums a run up.

    Args:
        records: In any order.
        class_names: In the order of the report; one without requests is in it too.
        in_time_seconds: The latency up to which a picture counts as in time.
    """
    begin = min((record.scheduled for record in records), default=0.0)
    seconds = max((record.ended for record in records), default=0.0) - begin
    classes = [_class_summary(ALL, records, in_time_seconds=in_time_seconds)]
    for name in class_names:
        own = [record for record in records if record.request.class_name == name]
        classes.append(_class_summary(name, own, in_time_seconds=in_time_seconds))
    painted = [record for record in records if record.ending == "painted"]
    stages = stage_times(record.usage for record in painted)
    total_ms = 1000 * sum(record.ended - record.sent for record in painted)

    def share(spent_ms: Iterable[float]) -> float | None:
        return sum(spent_ms) / total_ms if stages and total_ms > 0 else None

    return Summary(
        seconds=seconds,
        images_per_second=classes[0].painted / seconds if seconds else 0.0,
        images_in_time_per_second=classes[0].painted_in_time / seconds if seconds else 0.0,
        classes=tuple(classes),
        sent_late=quantiles(record.sent - record.scheduled for record in records),
        stages=stages,
        called=share(stage.call_ms for stage in stages),
        explained=share(stage.queue_ms + stage.running_ms for stage in stages),
        computed=share(stage.compute_ms for stage in stages),
    )


def quantiles(seconds: Iterable[float]) -> Quantiles | None:
    """Percentiles and the largest; None of nothing."""
    values = np.fromiter(seconds, dtype=np.float64)
    if not len(values):
        return None
    return Quantiles(*(float(each) for each in np.percentile(values, (*PERCENTILES, 100))))


def stage_times(usages: Iterable[Sequence[StageUsage]]) -> tuple[StageTime, ...]:
    """Sums what requests report, stage by stage."""
    sums: dict[int, StageTime] = {}
    for usage in usages:
        for index, each in enumerate(usage):
            before = sums.get(index, StageTime(each.stage or each.role, 0, 0.0, 0.0, 0.0, 0.0))
            sums[index] = StageTime(
                before.stage,
                attempts=before.attempts + each.attempts,
                call_ms=before.call_ms + each.call_ms,
                queue_ms=before.queue_ms + each.queue_ms,
                running_ms=before.running_ms + each.running_ms,
                compute_ms=before.compute_ms + each.compute_ms,
            )
    return tuple(sums[index] for index in sorted(sums))


def _class_summary(name: str, records: Sequence[Record], *, in_time_seconds: float) -> ClassSummary:
    painted = [record for record in records if record.ending == "painted"]
    refused = [record for record in records if record.ending == "refused"]
    kinds = [record.error or "" for record in records if record.ending == "failed"]
    return ClassSummary(
        name=name,
        offered=len(records),
        painted=len(painted),
        painted_in_time=sum(record.latency_seconds <= in_time_seconds for record in painted),
        refused=len(refused),
        timed_out=sum(record.ending == "timed out" for record in records),
        failed=dict(sorted(Counter(kind.partition(":")[0] for kind in kinds).items())),
        latency=quantiles(record.latency_seconds for record in painted),
        first_step=quantiles(
            record.first_step - record.scheduled
            for record in painted
            if record.first_step is not None
        ),
        refusal=quantiles(record.ended - record.sent for record in refused),
    )
