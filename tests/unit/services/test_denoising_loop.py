"""The loop over unequal jobs, on a toy generator: who shares a call, who leaves, who fails."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager

import pytest
import torch

from carrara_models.errors import JobStateError, NumericalError
from carrara_services.admission.demand import Demand
from carrara_services.admission.following import follow
from carrara_services.admission.happenings import (
    Finished,
    Preview,
    Progress,
    Queued,
    Suspended,
)
from carrara_services.admission.line import Ticket
from carrara_services.denoising.loop import DenoisingLoop
from carrara_services.refusals import (
    DeadlineError,
    DrainingError,
    QueueFullError,
    StalledError,
    TooLargeError,
)
from carrara_services.work import Work
from unit.services.toy_generator import ToyGenerator, alone, toy_request


@contextmanager
def looping(
    generator: ToyGenerator, *, max_queue_jobs: int = 8, max_batch_rows: int = 8, **settings: float
) -> Iterator[DenoisingLoop]:
    loop = DenoisingLoop(
        generator, max_queue_jobs=max_queue_jobs, max_batch_rows=max_batch_rows, **settings
    )
    try:
        yield loop
    finally:
        if generator.turn is not None:
            generator.turn.release(1000)
        loop.close()


def run(
    loop: DenoisingLoop, request, *, deadline: float | None = None, **how: object
) -> asyncio.Task[Finished | Suspended]:
    work = Work(request, **how)

    async def end() -> Finished | Suspended:
        demand = Demand(rows=len(request.conditioning))
        happenings = follow(loop.line, work, deadline=deadline, stage="generator", demand=demand)
        async with aclosing(happenings):
            return [happening async for happening in happenings][-1]

    return asyncio.create_task(end())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - threads change it
            await asyncio.sleep(0.001)


def held() -> threading.Semaphore:
    return threading.Semaphore(0)


async def test_jobs_join_and_leave_between_steps_and_each_gets_what_it_would_get_alone():
    generator = ToyGenerator(turn=held())
    with looping(generator) as loop:
        long = run(loop, toy_request(1, steps=4))
        await until(lambda: loop.rows == 1)
        short = run(loop, toy_request(2, steps=2))
        await until(lambda: loop.line.queued == 1)
        generator.turn.release(100)
        samples = [(await task).result for task in (long, short)]
    assert generator.calls == [[1], [1, 2], [1, 2], [1]]
    assert [s.tensors["latents"].item() for s in samples] == [alone(1, steps=4), alone(2, steps=2)]


async def test_events_tell_the_place_in_the_line_then_every_step_then_the_result():
    with looping(ToyGenerator()) as loop:
        happenings = [
            happening
            async for happening in follow(
                loop.line, Work(toy_request(5, steps=2)), deadline=None, stage="generator"
            )
        ]
    assert happenings[:-1] == [Queued(1, 0.0), Progress(1, 2), Progress(2, 2)]
    usage = happenings[-1].usage
    assert (usage.steps, usage.rows) == (2, 2)
    assert 0 <= usage.compute_ms <= usage.running_ms


async def test_a_batch_holds_no_more_rows_than_allowed_and_is_filled_in_order():
    generator = ToyGenerator(turn=held())
    with looping(generator, max_batch_rows=3) as loop:
        tasks = [run(loop, toy_request(0, steps=2))]
        await until(lambda: loop.rows == 1)
        tasks += [
            run(loop, toy_request(1, steps=2, guided=True)),
            run(loop, toy_request(2, steps=1, guided=True)),
            run(loop, toy_request(3, steps=1)),
        ]
        await until(lambda: loop.line.queued == 3)
        generator.turn.release(100)
        await asyncio.gather(*tasks)
    # Job 2 needs two rows and waits for them; job 3 would fit earlier, but does not overtake it.
    assert generator.calls == [[0], [0, 1], [1], [2, 3]]


async def test_jobs_of_other_shapes_take_calls_in_turn():
    generator = ToyGenerator(turn=held())
    with looping(generator) as loop:
        tasks = [run(loop, toy_request(0, steps=3))]
        await until(lambda: loop.rows == 1)
        tasks += [run(loop, toy_request(1, steps=2, height=16)), run(loop, toy_request(2, steps=2))]
        await until(lambda: loop.line.queued == 2)
        generator.turn.release(100)
        await asyncio.gather(*tasks)
    assert generator.calls == [[0], [1], [0, 2], [1], [0, 2]]


async def test_a_cancelled_job_is_not_in_the_next_call_and_its_neighbour_does_not_notice():
    generator = ToyGenerator(turn=held())
    with looping(generator) as loop:
        cancelled = run(loop, toy_request(1, steps=50))
        await until(lambda: loop.rows == 1)
        neighbour = run(loop, toy_request(2, steps=3))
        await until(lambda: loop.line.queued == 1)
        generator.turn.release(2)
        await until(lambda: len(generator.calls) == 2)
        assert generator.calls[-1] == [1, 2], "both must run when one is cancelled"
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        generator.turn.release(100)
        sample = (await neighbour).result
        await until(lambda: loop.line.running == 0)
    # The third call had begun when the job was cancelled; the fourth is without it.
    assert generator.calls == [[1], [1, 2], [1, 2], [2]]
    assert sample.tensors["latents"].item() == alone(2)


async def test_each_of_a_thousand_abandoned_jobs_takes_one_more_step_at_most():
    draw, many = random.Random(0), 10**6
    done: dict[Ticket, float] = {}  # when each had just been abandoned
    with looping(ToyGenerator(), max_queue_jobs=16, max_batch_rows=16) as loop:
        living: list[Ticket] = []
        while len(done) < 1000:
            while len(living) < 16:
                work = Work(toy_request(len(done), steps=many))
                living.append(loop.line.submit(work, listener=lambda _: None))
            await asyncio.sleep(draw.choice((0, 0, 0.001, 0.003)))
            ticket = living.pop(draw.randrange(16))
            loop.line.abandon(ticket)
            done[ticket] = ticket.share_done
        for ticket in living:
            loop.line.abandon(ticket)
        await until(lambda: not loop.line.running)
    assert sum(share > 0 for share in done.values()) > 500, "they must have been running"
    more = [round((ticket.share_done - share) * many) for ticket, share in done.items()]
    assert max(more) <= 1


async def test_an_abandoned_job_leaves_the_line_at_once_while_the_device_is_busy():
    generator = ToyGenerator(turn=held())
    with looping(generator, max_batch_rows=1) as loop:
        run(loop, toy_request(1))
        await until(lambda: loop.line.running == 1)
        waiting = run(loop, toy_request(2))
        await until(lambda: loop.line.queued == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert loop.line.queued == 0
        assert not generator.calls, "the device did not move meanwhile"


async def test_a_deadline_in_the_line_is_answered_at_once_while_the_device_is_busy():
    generator = ToyGenerator(turn=held())
    with looping(generator, max_batch_rows=1) as loop:
        run(loop, toy_request(1))
        await until(lambda: loop.line.running == 1)
        soon = asyncio.get_running_loop().time() + 0.05
        with pytest.raises(DeadlineError, match="in the queue of the generator"):
            await run(loop, toy_request(2), deadline=soon)
        assert loop.line.queued == 0
        assert not generator.calls, "the device did not move meanwhile"


@pytest.mark.parametrize(
    ("interval", "steps"), [(0, 2), (3600, 3)], ids=["told of each step", "told of the first"]
)
async def test_a_deadline_of_a_running_job_says_after_which_step_and_frees_its_row(
    interval: float, steps: int
):
    generator = ToyGenerator(turn=held())
    with looping(generator, progress_interval_seconds=interval) as loop:
        soon = asyncio.get_running_loop().time() + 0.3
        job = run(loop, toy_request(1, steps=50), deadline=soon)
        generator.turn.release(steps)
        place = f"in the generator after step {steps} of 50"
        with pytest.raises(DeadlineError, match=place) as caught:
            await job
        assert caught.value.step == steps
        generator.turn.release(1)
        await until(lambda: loop.rows == 0)
    assert len(generator.calls) == steps + 1


async def test_a_full_line_refuses_at_once_and_says_when_to_come_back():
    generator = ToyGenerator(turn=held())
    with looping(generator, max_queue_jobs=1, max_batch_rows=1) as loop:
        tasks = [run(loop, toy_request(1))]
        await until(lambda: loop.line.running == 1)
        tasks.append(run(loop, toy_request(2)))
        await until(lambda: loop.line.queued == 1)
        with pytest.raises(QueueFullError) as caught:
            await run(loop, toy_request(3))
        assert caught.value.retry_after_seconds > 0
        generator.turn.release(100)
        await asyncio.gather(*tasks)
        assert (await run(loop, toy_request(3))).result.tensors["latents"].item() == alone(3)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("poisoned", RuntimeError), ("diverging", NumericalError), ("refused", ValueError)],
)
async def test_a_failing_job_fails_alone(fault: str, error: type[Exception]):
    generator = ToyGenerator(turn=held(), **{fault: frozenset({2})})
    with looping(generator) as loop:
        tasks = [run(loop, toy_request(seed)) for seed in (1, 2, 3)]
        await until(lambda: loop.line.running + loop.line.queued >= 2)
        generator.turn.release(100)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], error), "the fault must have taken place"
        for seed, result in ((1, results[0]), (3, results[2])):
            assert result.result.tensors["latents"].item() == alone(seed)
        assert (await run(loop, toy_request(4))).result.tensors["latents"].item() == alone(4)


async def test_a_step_that_fails_as_a_whole_fails_its_jobs_and_not_the_loop():
    generator = ToyGenerator(turn=held(), stuck=frozenset({2}))
    with looping(generator) as loop:
        tasks = [run(loop, toy_request(seed)) for seed in (1, 2)]
        await until(lambda: loop.line.running + loop.line.queued >= 2)
        generator.turn.release(100)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], RuntimeError)
        assert (await run(loop, toy_request(4))).result.tensors["latents"].item() == alone(4)


async def test_closing_finishes_what_runs_and_hands_back_what_waits():
    generator = ToyGenerator(turn=held())
    with looping(generator, max_batch_rows=1) as loop:
        running = run(loop, toy_request(1))
        await until(lambda: loop.line.running == 1)
        waiting = run(loop, toy_request(2))
        await until(lambda: loop.line.queued == 1)
        loop.line.close()
        with pytest.raises(DrainingError):
            await waiting
        with pytest.raises(DrainingError):
            await run(loop, toy_request(3))
        generator.turn.release(100)
        assert (await running).result.tensors["latents"].item() == alone(1)


async def test_handing_back_suspends_what_can_go_on_elsewhere_and_finishes_the_rest():
    generator = ToyGenerator(turn=held(), unportable=frozenset({3}))
    with looping(generator, max_batch_rows=3) as loop:
        resumable = run(loop, toy_request(1, steps=5), resumable=True)
        others = [
            run(loop, toy_request(2, steps=5)),
            run(loop, toy_request(3, steps=5), resumable=True),
        ]
        await until(lambda: loop.line.running + loop.line.queued == 3)
        generator.turn.release(2)
        await until(lambda: len(generator.calls) == 2 and loop.line.running == 3)
        waiting = run(loop, toy_request(4), resumable=True)
        await until(lambda: loop.line.queued == 1)
        loop.hand_back()
        with pytest.raises(DrainingError):
            await waiting
        generator.turn.release(100)
        suspended = await resumable
        for seed, task in zip((2, 3), others, strict=True):
            assert (await task).result.tensors["latents"].item() == alone(seed, steps=5)
    assert isinstance(suspended, Suspended)
    done = suspended.state.step
    assert 2 <= done < 5
    assert suspended.usage.steps == suspended.usage.rows == done
    other = ToyGenerator()
    with looping(other) as loop:
        end = await run(loop, toy_request(1, steps=5), resume=suspended.state)
        assert end.result.tensors["latents"].item() == alone(1, steps=5)
        assert end.usage.steps == 5 - done == len(other.calls)
        with pytest.raises(JobStateError):
            await run(loop, toy_request(1, steps=2), resume=suspended.state)


async def test_too_many_rows_for_the_memory_are_halved_and_no_job_is_lost():
    generator = ToyGenerator(turn=held(), memory_rows=3)
    with looping(generator) as loop:
        tasks = [run(loop, toy_request(0, steps=4))]
        await until(lambda: loop.rows == 1)
        tasks += [run(loop, toy_request(seed, steps=3)) for seed in range(1, 8)]
        await until(lambda: loop.line.queued == 7)
        generator.turn.release(1000)
        ends = [await task for task in tasks]
        assert loop.max_batch_rows == 2
        assert loop.line.healthy
    everyone = list(range(8))
    assert generator.calls[:5] == [[0], everyone, everyone[:4], [0, 1], [2, 3]], "and so on"
    assert ends[0].result.tensors["latents"].item() == alone(0, steps=4)
    for seed, end in enumerate(ends[1:], start=1):
        assert end.result.tensors["latents"].item() == alone(seed)
        assert end.usage.steps == 3


async def test_only_a_job_that_is_too_large_by_itself_fails_for_memory():
    generator = ToyGenerator(turn=held(), huge=frozenset({2}))
    with looping(generator) as loop:
        tasks = [run(loop, toy_request(0))]
        await until(lambda: loop.rows == 1)
        tasks += [run(loop, toy_request(seed)) for seed in (1, 2, 3)]
        await until(lambda: loop.line.queued == 3)
        generator.turn.release(1000)
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], TooLargeError)
    assert generator.calls.count([2]) == 2, "it was tried once more alone"
    for seed in (0, 1, 3):
        assert results[seed].result.tensors["latents"].item() == alone(seed)


async def test_the_group_of_the_most_urgent_job_is_served_first_and_each_in_a_round():
    generator = ToyGenerator(turn=held())
    with looping(generator) as loop:
        tasks = [run(loop, toy_request(0, steps=1))]
        await until(lambda: loop.rows == 1)
        for seed, height, deadline in ((1, 16, 50), (2, 24, 40), (3, 32, 60), (4, 24, 70)):
            due = asyncio.get_running_loop().time() + deadline
            tasks.append(run(loop, toy_request(seed, steps=2, height=height), deadline=due))
        await until(lambda: loop.line.queued == 4)
        generator.turn.release(1000)
        await asyncio.gather(*tasks)
    assert generator.calls == [[0], [2, 4], [1], [3], [2, 4], [1], [3]]


async def test_a_loop_that_dies_fails_its_work_and_is_not_healthy():
    class Dying(ToyGenerator):
        def predict(self, jobs):
            raise SystemExit("the device is gone")

    with looping(Dying()) as loop:
        assert loop.line.healthy
        with pytest.raises(StalledError):
            await run(loop, toy_request(1))
        assert not loop.line.healthy
        with pytest.raises(StalledError):
            await run(loop, toy_request(2))


async def test_work_that_makes_no_progress_is_not_healthy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("carrara_services.admission.pulse.HANG_SECONDS", 0.2)
    generator = ToyGenerator(turn=held())
    with looping(generator) as loop:
        job = run(loop, toy_request(1))
        await until(lambda: loop.line.running == 1)
        assert loop.line.healthy
        await until(lambda: not loop.line.healthy)
        generator.turn.release(100)
        await job
        await until(lambda: loop.line.healthy)


class Computing(ToyGenerator):
    """Its network's call is long: it computes until it is told to stop."""

    stop = False

    def predict(self, jobs):
        while not self.stop:
            sum(range(1000))
        return super().predict(jobs)


async def test_a_long_call_that_computes_is_healthy_until_it_takes_all_too_long(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("carrara_services.admission.pulse.HANG_SECONDS", 1.0)
    generator = Computing()
    with looping(generator) as loop:
        job = run(loop, toy_request(1))
        await until(lambda: loop.line.running == 1)
        end = asyncio.get_running_loop().time() + 3
        while asyncio.get_running_loop().time() < end:
            assert loop.line.healthy
            await asyncio.sleep(0.1)
        monkeypatch.setattr("carrara_services.admission.pulse.STALL_SECONDS", 2.0)
        assert not loop.line.healthy
        generator.stop = True
        await job
        await until(lambda: loop.line.healthy)


async def test_a_loop_without_work_is_healthy_as_long_as_its_thread_moves(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("carrara_services.admission.pulse.HANG_SECONDS", 1.0)
    monkeypatch.setattr("carrara_services.admission.line.IDLE_BEAT_SECONDS", 0.1)
    with looping(ToyGenerator()) as loop:
        await asyncio.sleep(1.5)
        assert loop.line.healthy
        # Its thread cannot wake as long as this one holds the lock that it waits with.
        with loop.line._changed:
            await until(lambda: not loop.line.healthy)
        await until(lambda: loop.line.healthy)


def painted(job, output: torch.Tensor) -> torch.Tensor:
    """One pixel: the job's name, its step, and what the network has just made of it."""
    return torch.tensor([[[job.name, job.step, int(output.item()) % 256]]], dtype=torch.uint8)


async def told(loop: DenoisingLoop, request, **how: object) -> list[object]:
    happenings = follow(loop.line, Work(request, **how), deadline=None, stage="generator")
    return [happening async for happening in happenings]


def shown(happenings: list[object]) -> list[tuple[int, list[int]]]:
    previews = [each for each in happenings if isinstance(each, Preview)]
    return [(each.step, each.image.ravel().tolist()) for each in previews]


async def test_who_asks_is_shown_every_so_many_steps_and_nobody_else_is():
    generator = ToyGenerator(turn=held(), preview=painted)
    with looping(generator) as loop:
        work = Work(toy_request(1, steps=5), preview_interval_steps=2)
        follows = follow(loop.line, work, deadline=None, stage="generator")
        asking: list[object] = [await anext(follows)]
        others = [
            asyncio.create_task(told(loop, toy_request(2, steps=5))),
            asyncio.create_task(told(loop, toy_request(3, steps=5), preview_interval_steps=9)),
        ]
        await until(lambda: loop.line.queued + loop.rows == 3)
        generator.turn.release(1)
        async for happening in follows:
            asking.append(happening)
            if isinstance(happening, Progress):  # no step before the one before has been read
                generator.turn.release(1)
        generator.turn.release(100)
        silent, rarely = [await task for task in others]
    assert generator.calls[1] == [1, 2, 3]
    assert [[step, pixel[:2]] for step, pixel in shown(asking)] == [[2, [1, 1]], [4, [1, 3]]]
    assert shown(silent) == shown(rarely) == []
    for index, happening in enumerate(asking):
        if isinstance(happening, Preview):
            assert asking[index - 1] == Progress(happening.step, 5)
    assert [h[-1].result.tensors["latents"].item() for h in (asking, silent)] == [
        alone(1, steps=5),
        alone(2, steps=5),
    ]


async def test_of_steps_in_quick_succession_first_last_and_shown_ones_are_told():
    with looping(ToyGenerator(preview=painted), progress_interval_seconds=3600) as loop:
        plain = await told(loop, toy_request(1, steps=9))
        seen = await told(loop, toy_request(2, steps=9), preview_interval_steps=4)
        once = await told(loop, toy_request(3, steps=1))
    assert [each.step for each in plain if isinstance(each, Progress)] == [1, 9]
    assert [each.step for each in seen if isinstance(each, Progress)] == [1, 4, 8, 9]
    assert [each.step for each in once if isinstance(each, Progress)] == [1]


async def test_a_reader_who_does_not_read_holds_nobody_up_and_is_shown_the_latest_alone():
    generator = ToyGenerator(preview=painted)
    with looping(generator) as loop:
        work = Work(toy_request(1, steps=50), preview_interval_steps=1)
        happenings = follow(loop.line, work, deadline=None, stage="generator")
        first = await anext(happenings)
        # It reads no more while its job runs to the end, beside another's.
        neighbour = await told(loop, toy_request(2, steps=60))
        assert loop.rows == 0
        unread = [happening async for happening in happenings]
    assert isinstance(first, Queued)
    assert neighbour[-1].result.tensors["latents"].item() == pytest.approx(alone(2, steps=60))
    assert [step for step, _ in shown(unread)] == [50]
    assert [each.step for each in unread if isinstance(each, Progress)] == list(range(1, 51))
    assert isinstance(unread[-1], Finished)


async def test_a_preview_that_fails_leaves_its_job_and_the_others_alone():
    def failing(job, output: torch.Tensor) -> torch.Tensor:
        if job.step == 1:
            raise RuntimeError("no picture of that")
        return painted(job, output)

    with looping(ToyGenerator(preview=failing)) as loop:
        asking, other = await asyncio.gather(
            told(loop, toy_request(1), preview_interval_steps=1), told(loop, toy_request(2))
        )
    # Nor is it tried again.
    assert [step for step, _ in shown(asking)] == [1]
    for seed, happenings in ((1, asking), (2, other)):
        assert happenings[-1].result.tensors["latents"].item() == alone(seed)


async def test_a_step_that_goes_wrong_is_not_shown():
    with looping(ToyGenerator(preview=painted, diverging=frozenset({1}))) as loop:
        follows = follow(
            loop.line,
            Work(toy_request(1), preview_interval_steps=2),
            deadline=None,
            stage="generator",
        )
        first, second = await anext(follows), await anext(follows)
        with pytest.raises(NumericalError):
            await anext(follows)
    assert (first, second) == (Queued(1, 0.0), Progress(1, 3))


async def test_a_part_that_cannot_show_its_jobs_runs_them_all_the_same():
    with looping(ToyGenerator()) as loop:
        happenings = await told(loop, toy_request(1), preview_interval_steps=1)
    assert shown(happenings) == []
    assert happenings[-1].result.tensors["latents"].item() == alone(1)
