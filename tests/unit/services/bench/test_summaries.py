from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrara.results import StageUsage
from carrara_services.bench.load import Ending, Record
from carrara_services.bench.summaries import quantiles, stage_times, summarize
from carrara_services.bench.workloads import PaintRequest

SECONDS = st.floats(0, 1e3)
ENDINGS = st.sampled_from(["painted", "refused", "timed out", "failed"])


def record(
    ended: float,
    *,
    ending: Ending = "painted",
    scheduled: float = 0.0,
    sent: float | None = None,
    name: str = "a",
    error: str | None = None,
    usage: tuple[StageUsage, ...] = (),
) -> Record:
    request = PaintRequest(0, name, "a circle", 0, {}, None)
    sent = scheduled if sent is None else sent
    first = sent + 0.25 if ending == "painted" else None
    return Record(request, scheduled, sent, first, ended, ending, error, usage)


def used(role: str, queue: float, running: float, compute: float) -> StageUsage:
    return StageUsage(
        role,
        "host:1",
        "f",
        1,
        call_ms=queue + running + 10,
        queue_ms=queue,
        running_ms=running,
        compute_ms=compute,
    )


@given(st.lists(st.tuples(SECONDS, ENDINGS, st.sampled_from("ab")), max_size=30))
def test_every_request_is_counted_once_overall_and_in_its_class(
    drawn: list[tuple[float, Ending, str]],
) -> None:
    records = [
        record(ended, ending=ending, name=name, error="X: y" if ending == "failed" else None)
        for ended, ending, name in drawn
    ]
    summary = summarize(records, class_names="ab", in_time_seconds=10)
    assert summary.all.offered == len(records)
    for each in summary.classes:
        kinds = each.painted + each.refused + each.timed_out + sum(each.failed.values())
        assert kinds == each.offered
        assert each.painted_in_time <= each.painted
        assert (each.latency is None) == (each.painted == 0)
    _, a, b = summary.classes
    assert (a.offered + b.offered, a.painted + b.painted) == (
        summary.all.offered,
        summary.all.painted,
    )


@given(st.lists(SECONDS, min_size=1, max_size=50))
def test_quantiles_are_numpys_and_rise(values: list[float]) -> None:
    found = quantiles(values)
    assert found is not None
    assert found.p50 == pytest.approx(np.percentile(values, 50))
    assert found.p99 == pytest.approx(np.percentile(values, 99))
    ordered = [found.p50, found.p90, found.p95, found.p99, found.max]
    assert ordered == sorted(ordered)
    assert found.max == max(values)


def test_a_run_without_requests_has_neither_times_nor_rates() -> None:
    summary = summarize([], class_names=["a"], in_time_seconds=1)
    assert quantiles([]) is None
    assert (summary.seconds, summary.images_per_second, summary.all.offered) == (0, 0, 0)
    assert (summary.called, summary.explained, summary.stages) == (None, None, ())
    assert summary.sent_late is None


def test_rates_are_of_the_time_from_the_first_request_s_due_to_the_last_answer() -> None:
    records = [
        record(3.0, scheduled=2.0),
        record(6.0, scheduled=2.5),
        record(7.0, scheduled=3.0, ending="refused"),
    ]
    summary = summarize(records, class_names=["a"], in_time_seconds=2)
    assert summary.seconds == 5
    assert summary.images_per_second == pytest.approx(2 / 5)
    assert summary.images_in_time_per_second == pytest.approx(1 / 5)
    assert (summary.all.painted_in_time, summary.all.offered) == (1, 3)


def test_latency_counts_from_due_and_a_refusal_from_sent() -> None:
    records = [
        record(4.0, scheduled=1.0, sent=2.0),
        record(5.0, scheduled=1.0, sent=4.5, ending="refused"),
    ]
    summary = summarize(records, class_names=["a"], in_time_seconds=9)
    assert summary.all.latency is not None
    assert summary.all.first_step is not None
    assert summary.all.refusal is not None
    assert summary.sent_late is not None
    assert summary.all.latency.max == 3.0
    assert summary.all.first_step.max == 1.25
    assert summary.all.refusal.max == 0.5
    assert summary.sent_late.max == 3.5


def test_failures_are_counted_by_kind() -> None:
    records = [
        record(1, ending="failed", error="StageUnavailableError: generator host:1: gone"),
        record(1, ending="failed", error="InternalStageError: decoder host:2: fault"),
        record(1, ending="failed", error="StageUnavailableError: decoder host:2: gone"),
    ]
    summary = summarize(records, class_names=["a"], in_time_seconds=9)
    assert summary.all.failed == {"InternalStageError": 1, "StageUnavailableError": 2}


def test_what_stages_report_is_summed_and_held_against_the_time_of_what_was_painted() -> None:
    records = [
        record(1.0, usage=(used("text-encoder", 0, 100, 50), used("generator", 200, 500, 200))),
        record(1.0, usage=(used("text-encoder", 0, 100, 50), used("generator", 100, 600, 300))),
        record(9.0, ending="refused"),
    ]
    summary = summarize(records, class_names=["a"], in_time_seconds=9)
    encoder, generator = summary.stages
    assert (encoder.stage, encoder.attempts, encoder.running_ms) == ("text-encoder", 2, 200)
    assert (generator.queue_ms, generator.running_ms, generator.compute_ms) == (300, 1100, 500)
    assert (encoder.call_ms, generator.call_ms) == (220, 1420)
    assert summary.called == pytest.approx((220 + 1420) / 2000)
    assert summary.explained == pytest.approx((200 + 300 + 1100) / 2000)
    assert summary.computed == pytest.approx((100 + 500) / 2000)


def test_stages_of_one_name_stay_apart() -> None:
    encoders = (used("text-encoder", 0, 1, 1), used("text-encoder", 0, 2, 2))
    assert [each.running_ms for each in stage_times([encoders, encoders])] == [2, 4]
