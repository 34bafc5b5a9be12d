"""A generator under thousands of jobs: none changes another, none leaves anything behind."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
import pytest_asyncio

from carrara import AsyncCascade
from carrara.v1 import generator_pb2, generator_pb2_grpc, stage_pb2
from carrara_models.denoising.job import DenoisingJob
from carrara_services.admission.line import Ticket
from integration.in_process import encode, events, generate, read, served
from integration.processes import starting
from tiny_checkpoints import build_sd1

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(900)]

CALLERS = 16
SCHEDULERS = (
    *("ddim", "ddpm", "pndm", "lms", "euler", "euler-ancestral", "heun", "dpm++2m", "unipc"),
)
Made = TypeVar("Made")


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


@dataclass
class Jobs:
    """Makes jobs that differ in all that may differ in a batch."""

    conditioning: stage_pb2.Conditioning

    def job(self, number: int, *, steps: int | None = None) -> stage_pb2.Job:
        """The job of a number; always the same."""
        draw = random.Random(number)
        guided = draw.random() < 0.5
        job = stage_pb2.Job(
            conditioning=self.conditioning,
            random_state=stage_pb2.RandomState(seed=draw.randrange(2**64)),
            arguments=stage_pb2.Arguments(
                num_inference_steps=steps or draw.choice((1, 2, 4, 7, 12)),
                guidance_scale=draw.uniform(1.5, 12) if guided else 1.0,
                scheduler=draw.choice(SCHEDULERS),
                width=draw.choice((64, 72)),
            ),
        )
        if not guided:
            del job.conditioning.tensors["negative_prompt_embeds"]
        return job


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def jobs(sd1: Path) -> AsyncIterator[Jobs]:
    async with served("text-encoder", sd1) as text_encoder:
        encoded = await encode(text_encoder, "a red circle", "blue")
    yield Jobs(encoded.conditioning)


async def by_callers(
    work: Callable[[int], Awaitable[Made]], numbers: Sequence[int], *, callers: int = CALLERS
) -> dict[int, Made]:
    """Each caller begins its next work when its last is done."""
    waiting, made = iter(numbers), {}

    async def call() -> None:
        for number in waiting:
            made[number] = await work(number)

    await asyncio.gather(*(call() for _ in range(callers)))
    return made


async def test_a_thousand_mixed_jobs_have_the_bytes_that_each_has_alone(sd1: Path, jobs: Jobs):
    async with served("generator", sd1) as generator:

        async def sample(number: int) -> bytes:
            result = await generate(generator, jobs.job(number))
            return result.sample.SerializeToString(deterministic=True)

        alone = await by_callers(sample, range(1000), callers=1)
        ticks = read(generator, "carrara_tick_seconds_count")
        together = await by_callers(sample, range(1000))
        shared = read(generator, "carrara_tick_seconds_count") - ticks
        assert shared < ticks / 3, "they must have shared calls"
    assert len(set(alone.values())) == 1000
    assert [number for number in alone if alone[number] != together[number]] == []


async def test_a_hundred_mixed_pictures_of_the_shipped_checkpoint_are_what_each_is_alone():
    async with await AsyncCascade.embedded("drawn-latent") as cascade:

        async def picture(number: int) -> bytes:
            draw = random.Random(number)
            colour, shape = draw.choice(("red", "blue")), draw.choice(("circle", "star"))
            result = await cascade.generate(
                f"a large {colour} {shape}",
                seed=number,
                num_inference_steps=draw.choice((2, 4, 8, 20)),
                guidance_scale=draw.choice((1.0, 2.0, 5.0)),
                scheduler=draw.choice(SCHEDULERS),
            )
            return np.asarray(result.images[0].image).tobytes()

        alone = await by_callers(picture, range(100), callers=1)
        together = await by_callers(picture, range(100))
    assert len(set(alone.values())) == 100
    assert [number for number in alone if alone[number] != together[number]] == []


async def test_a_thousand_cancelled_jobs_end_early_and_change_none_of_their_neighbours(
    sd1: Path, jobs: Jobs
):
    async with served("generator", sd1, max_batch_rows=16) as generator:

        async def sample(number: int) -> bytes:
            result = await generate(generator, jobs.job(number))
            return result.sample.SerializeToString(deterministic=True)

        neighbours = range(0, 1500, 3)
        alone = await by_callers(sample, neighbours, callers=1)
        reached: Counter[str] = Counter()

        async def work(number: int) -> bytes | None:
            if number in neighbours:
                return await sample(number)
            request = generator_pb2.GenerateRequest(job=jobs.job(number, steps=300))
            call = generator.stub.Generate(request)
            draw = random.Random(-number)
            # Some while they wait, some right at their start, some in the midst.
            patience = draw.choice((0, 1, 3, 6))
            last = "nothing"
            async for response in call:
                last = str(response.event.WhichOneof("event"))
                if (last == "progress" and not patience) or draw.random() < 0.05:
                    break
                patience = max(0, patience - (last == "progress"))
            reached[last] += 1
            call.cancel()
            assert await call.code() == grpc.StatusCode.CANCELLED
            return None

        together = await by_callers(work, range(1500))
        async with asyncio.timeout(20):
            while (await generator.describe()).load.jobs_running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        ended = {
            outcome: read(generator, "carrara_jobs_ended_total", outcome=outcome)
            for outcome in ("finished", "cancelled", "failed", "expired")
        }
    assert ended == {"finished": 2 * len(neighbours), "cancelled": 1000, "failed": 0, "expired": 0}
    assert reached["queued"] > 20
    assert reached["progress"] > 500
    assert [each for each in neighbours if together[each] != alone[each]] == []


def held() -> dict[str, int]:
    """How many jobs, tickets and tasks there are in this process."""
    gc.collect()
    kinds = Counter(type(each) for each in gc.get_objects())
    return {
        "jobs": kinds[DenoisingJob],
        "tickets": kinds[Ticket],
        "tasks": len(asyncio.all_tasks()),
    }


async def test_what_jobs_hold_is_released_however_they_end(sd1: Path, jobs: Jobs):
    async with served("generator", sd1) as generator:
        work = cancelling(generator.stub, jobs)
        await by_callers(work, range(100))
        await asyncio.sleep(0.5)
        before = held()
        await by_callers(work, range(500))
        await asyncio.sleep(0.5)
        assert held() == before
        assert before["jobs"] == before["tickets"] == 0


async def test_ten_thousand_jobs_leave_no_memory_behind(sd1: Path, jobs: Jobs):
    with starting("generator", checkpoint=sd1) as process:
        process.wait_until_ready()
        resident: list[float] = []  # MiB, after each thousand
        async with grpc.aio.insecure_channel(process.address) as channel:
            stub = generator_pb2_grpc.GeneratorServiceStub(channel)
            work = cancelling(stub, jobs)
            for thousand in range(10):
                await by_callers(work, range(thousand * 1000, (thousand + 1) * 1000))
                resident.append(resident_mib(process.process.pid))
    # The first thousands fill what is kept for good: schedulers, plans, torch's own pools.
    slope = np.polyfit(range(7), resident[3:], 1)[0]
    print(f"{slope:.2f} MiB per thousand; after each: {resident}")
    assert slope <= 1.0


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cancelling(stub: Any, jobs: Jobs) -> Callable[[int], Awaitable[None]]:
    """Work of which every fifth is cancelled in its midst."""

    async def work(number: int) -> None:
        steps = 300 if number % 5 == 0 else 2
        call = stub.Generate(
            generator_pb2.GenerateRequest(job=jobs.job(number % 1000, steps=steps))
        )
        if number % 5:
            assert (await events(call))[-1].sample.tensors
            return
        async for response in call:
            if response.event.HasField("progress"):
                break
        call.cancel()

    return work
