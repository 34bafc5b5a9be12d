from __future__ import annotations

import pytest

from carrara_services.bench.load import run_load, warm_up
from carrara_services.bench.workloads import RequestClass, warm_up_requests, workload_of
from unit.services.bench.toy_target import ToyTarget

ONE = (RequestClass("only"),)


async def test_a_closed_loop_has_as_many_under_way_as_callers_and_asks_for_all_in_order() -> None:
    target = ToyTarget(seconds=0.01)
    work = workload_of("uniform", callers=3, request_count=10)
    records = await run_load(target, work, timeout_seconds=5)
    assert target.most_at_once == 3
    assert [request.index for request in target.asked] == list(range(10))
    assert sorted(record.request.index for record in records) == list(range(10))
    for record in records:
        assert record.scheduled <= record.sent <= (record.first_step or 0) <= record.ended
        assert record.latency_seconds >= 0.01


async def test_time_ends_a_closed_loop_and_what_is_under_way_is_waited_for() -> None:
    target = ToyTarget(seconds=0.04)
    work = workload_of("uniform", callers=2, duration_seconds=0.1)
    records = await run_load(target, work, timeout_seconds=5)
    assert 4 <= len(records) <= 6
    assert target.running == 0
    assert all(record.sent < 0.1 for record in records)


async def test_a_burst_is_sent_at_once() -> None:
    target = ToyTarget(seconds=0.05)
    await run_load(target, workload_of("burst", request_count=20), timeout_seconds=5)
    assert target.most_at_once == 20


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    target = ToyTarget(seconds=0.2)
    work = workload_of("poisson", classes=ONE, rate=100, request_count=10)
    records = await run_load(target, work, timeout_seconds=5)
    assert target.most_at_once == 10
    assert max(record.sent - record.scheduled for record in records) < 0.1


async def test_a_request_that_is_sent_late_counts_from_when_it_was_due() -> None:
    """The caller's process stands still, as one that cannot keep up does."""
    target = ToyTarget(blocked={0: 0.3})
    work = workload_of("poisson", classes=ONE, rate=100, request_count=5)
    records = {r.request.index: r for r in await run_load(target, work, timeout_seconds=5)}
    late = [record.sent - record.scheduled for record in records.values()]
    assert max(late) > 0.2, "the fault took place"
    for index in (1, 2, 3, 4):
        record = records[index]
        assert record.scheduled == record.request.due_seconds
        assert record.latency_seconds >= 0.3 - record.scheduled - 0.01


async def test_a_caller_rests_after_a_failure_and_the_record_says_what_it_was() -> None:
    target = ToyTarget(endings={0: "refused", 1: "failed"})
    work = workload_of("uniform", callers=1, request_count=3)
    records = await run_load(target, work, timeout_seconds=5)
    assert [record.ending for record in records] == ["refused", "failed", "painted"]
    assert records[1].error == "RuntimeError: request 1"
    assert records[1].sent - records[0].ended >= 0.1
    assert records[2].sent - records[1].ended >= 0.1


async def test_a_warm_up_lets_refusals_pass_and_ends_at_a_failure() -> None:
    work = workload_of("uniform")
    target = ToyTarget(seconds=0.01, endings={-3: "refused"})
    requests = warm_up_requests(work, count=6)
    await warm_up(target, requests, at_once=2, timeout_seconds=5)
    assert (len(target.asked), target.most_at_once) == (6, 2)
    target.endings[-2] = "failed"
    with pytest.raises(RuntimeError, match="request -2"):
        await warm_up(target, requests, at_once=2, timeout_seconds=5)
