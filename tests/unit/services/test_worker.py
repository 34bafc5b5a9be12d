"""The worker of text encoders and decoders: what it does together, and what becomes of failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from carrara_services.admission.following import finished
from carrara_services.refusals import StalledError, TooLargeError
from carrara_services.worker import Worker


class Kitchen:
    """Work that waits until it may begin, and remembers what was done together."""

    def __init__(self, *, stove: int = 100) -> None:
        self.stove = stove  # what fits into memory
        self.began, self.begins = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []

    def cook(self, dishes: Sequence[str]) -> list[object]:
        self.began.set()
        assert self.begins.wait(20)
        self.batches.append(list(dishes))
        if len(dishes) > self.stove:
            raise MemoryError
        if any(dish.startswith("raw") for dish in dishes):
            raise ValueError(f"{len(dishes)} at once")
        return [OSError("burnt") if dish == "burnt" else dish.upper() for dish in dishes]

    async def serve(self, worker: Worker, dishes: Sequence[str]) -> list[object]:
        """Results of all, errors among them; the first is under way before the others come."""
        async with asyncio.timeout(20):
            tasks = []
            for dish in dishes:
                tasks.append(asyncio.create_task(order(worker, dish)))
                await asyncio.to_thread(self.began.wait, 20)
            self.begins.set()
            return await asyncio.gather(*tasks, return_exceptions=True)


async def order(worker: Worker, dish: str) -> object:
    return (await finished(worker.line, dish, deadline=None, stage="decoder")).result


def worker_of(kitchen: Kitchen, **options: object) -> Worker:
    return Worker(kitchen.cook, name="cooking", max_queue_jobs=99, **options)


async def test_what_waits_is_done_together_but_for_other_groups_and_no_more_than_may_be():
    kitchen = Kitchen()
    worker = worker_of(kitchen, group=len, max_batch=3)
    dishes = ["first", "abc", "def", "soup", "ghi", "jkl", "mno", "pqr"]
    assert await kitchen.serve(worker, dishes) == [dish.upper() for dish in dishes]
    assert kitchen.batches == [
        ["first"],
        ["abc", "def"],
        ["soup"],
        ["ghi", "jkl", "mno"],
        ["pqr"],
    ]
    worker.close()


async def test_alone_is_the_default():
    kitchen = Kitchen()
    worker = worker_of(kitchen)
    await kitchen.serve(worker, ["a", "b", "c"])
    assert kitchen.batches == [["a"], ["b"], ["c"]]
    worker.close()


async def test_the_first_waits_for_company_as_long_as_it_is_told_to():
    kitchen = Kitchen()
    kitchen.begins.set()
    worker = worker_of(kitchen, max_batch=3, max_wait_seconds=30.0)
    async with asyncio.timeout(20):
        await asyncio.gather(*(order(worker, dish) for dish in "abc"))
    assert kitchen.batches == [["a", "b", "c"]]
    worker.close()


async def test_what_one_raises_or_returns_is_its_own():
    kitchen = Kitchen()
    worker = worker_of(kitchen, max_batch=9)
    _, soup, burnt, raw, fish = await kitchen.serve(
        worker, ["first", "soup", "burnt", "raw fish", "fish"]
    )
    assert (soup, fish) == ("SOUP", "FISH")
    assert isinstance(burnt, OSError)
    assert isinstance(raw, ValueError)
    assert str(raw) == "1 at once"
    worker.close()


async def test_out_of_memory_halves_what_is_done_together_from_then_on():
    kitchen = Kitchen(stove=2)
    worker = worker_of(kitchen, max_batch=8)
    dishes = ["first", *"abcdefgh"]
    assert await kitchen.serve(worker, dishes) == [dish.upper() for dish in dishes]
    assert [len(batch) for batch in kitchen.batches] == [1, 8, 4, 2, 2, 4, 2, 2]
    assert worker.max_batch == 2
    worker.close()


async def test_what_does_not_fit_alone_is_too_large_and_is_tried_once_more():
    kitchen = Kitchen(stove=0)
    worker = worker_of(kitchen, max_batch=8)
    (refused,) = await kitchen.serve(worker, ["feast"])
    assert isinstance(refused, TooLargeError)
    assert kitchen.batches == [["feast"], ["feast"]]
    worker.close()


async def test_work_that_ends_the_thread_is_failed_and_not_left_without_an_answer():
    def die(_: object) -> object:
        raise SystemExit("the device is gone")

    worker = Worker(die, name="dying", max_queue_jobs=4)
    async with asyncio.timeout(20):
        with pytest.raises(StalledError):
            await finished(worker.line, "work", deadline=None, stage="decoder")
    assert not worker.line.healthy
    worker.close()
