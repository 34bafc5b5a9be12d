"""The line: who is next, who is refused and why, and what those that wait are told."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrara_services.admission import line as line_module
from carrara_services.admission.demand import Demand, Priority
from carrara_services.admission.happenings import Finished, Queued, Usage
from carrara_services.admission.line import WaitingLine
from carrara_services.admission.pace import Pace
from carrara_services.refusals import QueueFullError

END = Finished(None, Usage(0, 0, 0))


def submit(line: WaitingLine, name: Any, *, told: list[Any] | None = None, **how: Any) -> Any:
    deadline = how.pop("deadline_in", None)
    return line.submit(
        name,
        listener=(lambda happening: None) if told is None else told.append,
        demand=Demand(**how),
        deadline=None if deadline is None else time.monotonic() + deadline,
    )


def order(line: WaitingLine) -> list[Any]:
    return [ticket.payload for ticket in iter(lambda: line.take(), None)]


def paced(*, cost_per_second: float, rows: int = 1, **how: Any) -> WaitingLine:
    line = WaitingLine(**{"max_jobs": 100, **how})
    line.tell_pace(rows=rows, cost=cost_per_second, seconds=1.0)
    return line


@given(
    st.lists(
        st.tuples(st.sampled_from(list(Priority)), st.sampled_from([None, 10.0, 20.0])), max_size=12
    )
)
def test_higher_priorities_come_first_then_earlier_deadlines_then_earlier_arrivals(jobs):
    line = WaitingLine(max_jobs=100)
    now = time.monotonic()
    for number, (priority, deadline) in enumerate(jobs):
        line.submit(
            number,
            listener=lambda happening: None,
            demand=Demand(priority=priority),
            deadline=None if deadline is None else now + deadline,
        )
    expected = sorted(range(len(jobs)), key=lambda n: (-jobs[n][0], jobs[n][1] or math.inf, n))
    assert order(line) == expected


def test_those_that_are_overtaken_are_told_their_new_place():
    line, told = WaitingLine(max_jobs=9), []
    submit(line, "plain", told=told)
    submit(line, "later")
    submit(line, "urgent", priority=Priority.HIGH)
    assert [event.position for event in told] == [1, 2]
    assert order(line) == ["urgent", "plain", "later"]


def test_work_without_room_holds_up_what_is_less_urgent_and_is_overtaken_by_what_is_more():
    line = WaitingLine(max_jobs=9)
    submit(line, "wide", rows=4)
    submit(line, "narrow", rows=1)

    def room(ticket: Any) -> bool:
        return ticket.demand.rows <= 2

    assert line.take(room) is None
    submit(line, "urgent", rows=1, priority=Priority.HIGH)
    assert line.take(room).payload == "urgent"
    assert line.take(room) is None


def test_a_line_that_has_as_many_jobs_as_it_may_refuses_and_says_when_a_place_is_free():
    line = paced(cost_per_second=10, max_jobs=2)
    submit(line, "runs", cost=50)
    line.take()
    for name in "ab":
        submit(line, name, cost=10)
    with pytest.raises(QueueFullError, match="2 jobs are waiting, which is the limit") as caught:
        submit(line, "c")
    assert caught.value.retry_after_seconds == pytest.approx(5)


def test_a_line_that_has_work_for_as_long_as_it_may_refuses():
    line = paced(cost_per_second=10, max_seconds=8)
    submit(line, "runs", cost=50)
    submit(line, "waits", cost=100)  # however long, where nothing waits yet
    assert line.backlog_seconds == pytest.approx(15)
    with pytest.raises(QueueFullError, match=r"about 15.0 s, and the limit is 8 s") as caught:
        submit(line, "one more")
    assert caught.value.retry_after_seconds == pytest.approx(7)
    assert line.queued == 2
    running = line.take()
    running.share_done = 1.0
    line.leave(running, END)
    line.abandon(line.take())
    assert line.backlog_seconds == pytest.approx(10), "until its worker has let it go"


def test_a_deadline_that_what_comes_before_does_not_allow_is_refused_at_once():
    line = paced(cost_per_second=10)
    submit(line, "runs", cost=50)
    line.take()
    with pytest.raises(QueueFullError, match=r"deadline is in 5.9 s, and .* about 5.0 s") as caught:
        submit(line, "too late", cost=10, deadline_in=5.95)
    assert 0.1 <= caught.value.retry_after_seconds < 0.2
    submit(line, "just in time", cost=10, deadline_in=6.1)
    submit(line, "in time before it", cost=1, deadline_in=6.1, priority=Priority.HIGH)
    # Alone it would not be done either, but that is for its own deadline to say.
    submit(paced(cost_per_second=10), "long", cost=1000, deadline_in=1)


def test_before_the_pace_is_known_nothing_is_refused_for_its_time():
    line, told = WaitingLine(max_jobs=9, max_seconds=1), []
    for name in "ab":
        submit(line, name, cost=1e9)
    line.take()
    submit(line, "c", cost=1e9, deadline_in=0.01, told=told)
    assert told == [Queued(1, None)]
    assert line.backlog_seconds is None


def test_what_runs_beside_it_half_done_need_not_be_waited_for():
    # Two places, each job one row and 10 s at half the pace: the third starts when one has ended.
    line, told = paced(cost_per_second=2, rows=2, width=2), []
    for name in "ab":
        submit(line, name, cost=10)
        line.take()
    submit(line, "c", cost=10, told=told)
    # 20 to be done, of which half of one job is still running when the other has ended.
    assert told == [Queued(1, pytest.approx((20 - 5) / 2))]
    room = paced(cost_per_second=2, width=3)
    submit(room, "a", cost=10)
    told.clear()
    submit(room, "b", cost=10, told=told)
    assert told[0].expected_wait_seconds == 0, "there is room for both"


def test_a_pace_is_that_of_the_fullest_batch_and_follows_what_is_measured():
    pace = Pace()
    assert pace.seconds(5) is None
    pace.tell(rows=1, cost=10, seconds=1)
    assert pace.seconds(20) == pytest.approx(2)
    pace.tell(rows=16, cost=160, seconds=4)
    pace.tell(rows=1, cost=10, seconds=1)
    assert pace.cost_per_second == pytest.approx(40)
    for _ in range(100):
        pace.tell(rows=17, cost=160, seconds=8)
    assert pace.cost_per_second == pytest.approx(20, rel=1e-3)


def test_places_are_told_at_most_once_in_an_interval_and_the_last_one_always(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(line_module.time, "monotonic", lambda: now[0])
    line = WaitingLine(max_jobs=100)
    told = {name: [] for name in "abcde"}
    for name, events in told.items():
        submit(line, name, told=events)

    def places() -> list[list[int]]:
        return [[event.position for event in events] for events in told.values()]

    for _ in range(3):
        line.take()
    assert places() == [[1], [2, 1], [3, 2], [4, 3], [5, 4]], "the first move, at once"
    now[0] += 0.9
    line.beat()
    assert places()[3:] == [[4, 3], [5, 4]], "not the next two"
    now[0] += 0.2
    line.beat()
    line.beat()
    assert places()[3:] == [[4, 3, 1], [5, 4, 2]], "where they stand now"
    submit(line, "urgent", priority=Priority.HIGH)
    now[0] += 1.1
    line.beat()
    assert places()[3:] == [[4, 3, 1, 2], [5, 4, 2, 3]], "whoever goes before them moves them too"
