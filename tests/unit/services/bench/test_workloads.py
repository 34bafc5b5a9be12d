from __future__ import annotations

import itertools
from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carrara_models.errors import BadFieldError
from carrara_services.bench.workloads import (
    PRESETS,
    Burst,
    ClosedLoop,
    PoissonArrivals,
    RequestClass,
    Workload,
    WorkloadName,
    arrival_seconds,
    requests_of,
    sha256_of,
    warm_up_requests,
    workload_of,
)

MIX = (RequestClass("often", 3.0), RequestClass("rarely", 1.0))


def poisson(*, count: int | None = None, seconds: float | None = None, seed: int = 0) -> Workload:
    return workload_of(
        "poisson",
        classes=MIX,
        rate=20,
        request_count=count,
        duration_seconds=seconds,
        seed=seed,
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(0, 30))
def test_a_longer_run_begins_with_the_requests_of_a_shorter_one(
    seed: int, short: int, more: int
) -> None:
    shorter, longer = (
        list(requests_of(poisson(count=max(1, count), seed=seed)))
        for count in (short, short + more)
    )
    assert longer[: len(shorter)] == shorter


def test_two_runs_of_one_seed_ask_for_the_very_same_and_those_of_another_for_others() -> None:
    def sha256(seed: int) -> str:
        return sha256_of(requests_of(poisson(count=20, seed=seed)))

    assert sha256(7) == sha256(7)
    assert sha256(7) != sha256(8)
    backwards = reversed(list(requests_of(poisson(count=20, seed=7))))
    assert sha256_of(backwards) == sha256(7), "whatever the order in which they ended"


def test_the_mix_and_the_prompts_do_not_depend_on_the_arrivals() -> None:
    runs = [
        workload_of("mixed", classes=MIX, request_count=30),
        workload_of("burst", classes=MIX, request_count=30),
        *(workload_of("poisson", classes=MIX, rate=rate, request_count=30) for rate in (0.1, 50)),
    ]
    asked = [[(r.class_name, r.prompt, r.seed) for r in requests_of(run)] for run in runs]
    assert asked[1:] == asked[:-1]
    assert len({prompt for _, prompt, _ in asked[0]}) > 25


def test_classes_come_in_proportion_to_their_shares() -> None:
    counts = Counter(r.class_name for r in requests_of(poisson(count=2000)))
    assert counts["often"] / 2000 == pytest.approx(0.75, abs=0.03)


def test_poisson_arrivals_have_the_rate_and_forget_when_the_last_one_was() -> None:
    due = [s for s in itertools.islice(arrival_seconds(PoissonArrivals(20), seed=3), 4000) if s]
    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *due])]
    assert min(gaps) >= 0
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 20, rel=0.06)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance == pytest.approx(1 / 20**2, rel=0.15), "of an exponential distribution"


def test_time_ends_an_open_loop_and_a_count_any() -> None:
    due = [request.due_seconds or 0 for request in requests_of(poisson(seconds=2))]
    assert 20 < len(due) < 60
    assert max(due) < 2
    assert len(list(requests_of(poisson(count=5, seconds=2)))) == 5
    endless = requests_of(workload_of("uniform", duration_seconds=1))
    assert len(list(itertools.islice(endless, 500))) == 500


def test_all_of_a_burst_are_due_at_once_and_those_of_a_closed_loop_when_a_caller_is_free() -> None:
    burst = list(requests_of(workload_of("burst")))
    assert (len(burst), {request.due_seconds for request in burst}) == (64, {0.0})
    closed = list(requests_of(workload_of("mixed", request_count=7)))
    assert (len(closed), {request.due_seconds for request in closed}) == (7, {None})


def test_presets_are_what_the_page_says() -> None:
    assert get_args(WorkloadName) == tuple(PRESETS)
    assert workload_of("uniform").arrivals == ClosedLoop(16)
    assert workload_of("mixed", callers=3).arrivals == ClosedLoop(3)
    assert workload_of("burst").arrivals == Burst()
    assert workload_of("poisson", rate=2).arrivals == PoissonArrivals(2)
    assert workload_of("overload", rate=2).arrivals == PoissonArrivals(20)
    assert workload_of("overload", rate=2).duration_seconds == 20
    settings_of_mix = [dict(each.settings) for each in PRESETS["mixed"].classes]
    assert settings_of_mix == [
        {"num_inference_steps": steps, "guidance_scale": scale}
        for steps in (4, 20, 50)
        for scale in (4.0, 1.0)
    ]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("uniform", {"rate": 2.0}, "arrivals of uniform have no rate"),
        ("poisson", {}, "poisson needs it"),
        ("poisson", {"rate": 0.0}, "rate: 0.0 is not allowed"),
        ("poisson", {"rate": float("inf")}, "finite"),
        ("overload", {"rate": 1.0, "callers": 3}, "overload is no closed loop"),
        ("mixed", {"duration_seconds": -1.0}, "duration_seconds: -1.0"),
        ("burst", {"duration_seconds": 3.0}, "all arrive at once"),
        ("uniform", {"classes": MIX + MIX}, "each name once"),
    ],
)
def test_what_does_not_go_together_is_refused(
    name: WorkloadName, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadFieldError, match=message):
        workload_of(name, **changes)


def test_the_warm_up_has_every_class_in_turn_and_prompts_of_its_own() -> None:
    work = poisson(count=20)
    requests = warm_up_requests(work, count=5)
    assert [request.class_name for request in requests] == [
        "often",
        "rarely",
        "often",
        "rarely",
        "often",
    ]
    assert [request.index for request in requests] == [-5, -4, -3, -2, -1]
    prompts = {request.prompt for request in requests}
    assert not prompts & {request.prompt for request in requests_of(work)}
