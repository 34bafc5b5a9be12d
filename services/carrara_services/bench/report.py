"""What `carrara bench` tells of a run: everything that repeats it, and what came out."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from carrara.outcomes import NUMERICS_NAMES
from carrara.v1.stage_pb2 import DescribeResponse
from carrara.v1.tensor_pb2 import DataType
from carrara_services.bench.memory import PeakMemory
from carrara_services.bench.runs import Run
from carrara_services.bench.summaries import ClassSummary, Summary
from carrara_services.bench.tables import Table
from carrara_services.bench.workloads import sha256_of

UNKNOWN = "unknown"
MOST_ERRORS = 5
NOTABLY_LATE_SECONDS = 0.01


def machine() -> dict[str, Any]:
    """The machine that this process runs on, and how busy it is now."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cpu_model": models[0] if models else platform.processor() or None,
        "cpu_count": os.cpu_count(),
        "usable_cpu_count": len(usable(0)) if usable is not None else None,
        "platform": platform.platform(),
        "load_average": list(os.getloadavg()),
    }


def stages_of(
    descriptions: Iterable[tuple[str, str, DescribeResponse]],
) -> list[dict[str, Any]]:
    """What Describe tells of each stage, in the order of the chain."""
    return [
        {
            "role": role,
            "stage": description.stage or role,
            "address": address,
            "checkpoint": description.checkpoint,
            "fingerprint": description.fingerprint,
            "numerics": NUMERICS_NAMES.get(description.provenance.numerics, UNKNOWN),
            "precision": DataType.Name(description.provenance.precision)
            .removeprefix("DATA_TYPE_")
            .lower(),
            "device": description.provenance.device,
            "num_threads": description.provenance.num_threads,
            "max_queue_jobs": description.load.max_queue_jobs,
            "max_batch_rows": description.load.max_batch_rows,
            "versions": dict(description.provenance.versions),
        }
        for role, address, description in descriptions
    ]


def document(
    run: Run,
    *,
    memory: Sequence[PeakMemory],
    with_records: bool,
    **told: Any,
) -> dict[str, Any]:
    """Makes the object that `--json` writes.

    Args:
        with_records: Whether every request with its times is in it.
        told: What else stands at its top.
    """
    whole = {
        **told,
        "versions": {"carrara": version("carrara"), "python": platform.python_version()},
        "workload": run.workload.to_json(),
        "requests_sha256": sha256_of(record.request for record in run.records),
        "summary": run.summary.to_json(),
        "memory": [asdict(each) for each in memory],
    }
    if with_records:
        ordered = sorted(run.records, key=lambda record: record.request.index)
        whole["records"] = [record.to_json() for record in ordered]
    return whole


def tables_of(summary: Summary) -> list[Table]:
    """Requests and their latencies, by class; what each stage spent."""
    requests = Table(
        "Requests, and seconds from when each was due to its end",
        (
            *("class", "offered", "painted", "in time", "refused", "timed out", "failed"),
            *("p50", "p90", "p95", "p99", "max", "first step p50"),
        ),
        [_row_of(each) for each in summary.classes],
    )
    tables = [requests]
    if summary.stages:
        painted = summary.all.painted
        tables.append(
            Table(
                "Milliseconds in each stage, the mean of a painted request",
                ("stage", "call", "queue", "running", "compute", "attempts"),
                [
                    (
                        each.stage,
                        *(
                            f"{ms / painted:.1f}"
                            for ms in (
                                each.call_ms,
                                each.queue_ms,
                                each.running_ms,
                                each.compute_ms,
                            )
                        ),
                        f"{each.attempts / painted:.2f}",
                    )
                    for each in summary.stages
                ],
            )
        )
    return tables


def lines_of(run: Run, *, memory: Sequence[PeakMemory], in_time_seconds: float) -> list[str]:
    """What stands beside the tables.

    Args:
        in_time_seconds: The latency up to which a picture counted as in time.
    """
    summary = run.summary
    everything = summary.all
    lines = [
        f"{summary.images_per_second:.3f} images/s; in time (within {in_time_seconds:g} s) "
        f"{summary.images_in_time_per_second:.3f} images/s, {everything.painted_in_time} of "
        f"{everything.offered} offered; {summary.seconds:.1f} s in all"
    ]
    if everything.refusal is not None:
        refusal = everything.refusal
        lines.append(
            f"A refusal took {seconds(refusal.p50)} s (p50), {seconds(refusal.p95)} s (p95), "
            f"{seconds(refusal.max)} s at most"
        )
    if summary.called is not None:  # and so the other two
        lines.append(
            f"Calls to stages took {summary.called:.1%} of the time from sent to ended; in "
            f"{summary.explained:.1%} requests waited or ran there, the rest is messages; in "
            f"{summary.computed:.1%} stages computed for the request itself"
        )
    if summary.sent_late is not None and summary.sent_late.max >= NOTABLY_LATE_SECONDS:
        late = summary.sent_late
        lines.append(
            f"The caller was busy: requests were sent {seconds(late.p50)} s (p50) to "
            f"{seconds(late.max)} s later than they were due, which their latencies count"
        )
    for source in dict.fromkeys(each.source for each in memory):
        peaks = [each for each in memory if each.source == source]
        told = [
            f"{each.of} {UNKNOWN if each.peak_bytes is None else f'{each.peak_bytes / 1e6:.0f} MB'}"
            for each in peaks
        ]
        lines.append(f"Memory at most: {', '.join(told)} ({source})")
    errors = [record.error for record in run.records if record.ending == "failed" and record.error]
    lines += [f"Failed: {error}" for error in list(dict.fromkeys(errors))[:MOST_ERRORS]]
    return lines


def seconds(value: float) -> str:
    """Three figures or so, and no powers of ten."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _row_of(each: ClassSummary) -> tuple[str, ...]:
    latency = each.latency
    times: Mapping[str, float] = {} if latency is None else asdict(latency)
    return (
        each.name,
        *(
            str(count)
            for count in (
                each.offered,
                each.painted,
                each.painted_in_time,
                each.refused,
                each.timed_out,
                sum(each.failed.values()),
            )
        ),
        *(
            seconds(times[name]) if name in times else "-"
            for name in ("p50", "p90", "p95", "p99", "max")
        ),
        "-" if each.first_step is None else seconds(each.first_step.p50),
    )
