"""Who is served first, who is refused at once, and what those that wait are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from carrara.v1 import generator_pb2, stage_pb2
from integration.in_process import Served, encode, events, refusal, served
from tiny_checkpoints import build_sd1

pytestmark = pytest.mark.asyncio(loop_scope="module")

Code = grpc.StatusCode
LONG_STEPS = 900  # of the tiny UNet: seconds


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def conditioning(sd1: Path) -> stage_pb2.Conditioning:
    async with served("text-encoder", sd1) as text_encoder:
        return (await encode(text_encoder, "a red circle", "blue", priority=3)).conditioning


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow(sd1: Path) -> AsyncIterator[Served]:
    """A generator that runs one job at a time."""
    async with served("generator", sd1, max_batch_rows=1) as generator:
        yield generator


def job(conditioning: stage_pb2.Conditioning, *, steps: int = 3, **more: Any) -> stage_pb2.Job:
    return stage_pb2.Job(
        conditioning=conditioning,
        random_state=stage_pb2.RandomState(seed=7),
        arguments=stage_pb2.Arguments(num_inference_steps=steps, scheduler="ddim"),
        **more,
    )


def call(generator: Served, made: stage_pb2.Job, **options: Any) -> Any:
    return generator.stub.Generate(generator_pb2.GenerateRequest(job=made), **options)


async def until_it_runs(stream: Any) -> None:
    async for response in stream:
        if response.event.progress.step:
            return


async def test_a_higher_priority_overtakes_what_waits(
    narrow: Served, conditioning: stage_pb2.Conditioning
):
    running = call(narrow, job(conditioning, steps=LONG_STEPS))
    await until_it_runs(running)
    ended: list[str] = []

    async def follow(name: str, **more: Any) -> None:
        await events(call(narrow, job(conditioning, **more)))
        ended.append(name)

    low = asyncio.ensure_future(follow("low", priority=stage_pb2.PRIORITY_LOW))
    normal = asyncio.ensure_future(follow("normal"))
    while (await narrow.describe()).load.jobs_queued < 2:
        pass
    high = asyncio.ensure_future(follow("high", priority=stage_pb2.PRIORITY_HIGH))
    while (await narrow.describe()).load.jobs_queued < 3:
        pass
    running.cancel()
    await asyncio.gather(low, normal, high)
    assert ended == ["high", "normal", "low"]


async def test_a_priority_that_is_none_is_refused(
    narrow: Served, conditioning: stage_pb2.Conditioning
):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(call(narrow, job(conditioning, priority=9)))
    assert refusal(caught.value).field == "job.priority"


async def test_a_deadline_that_the_backlog_does_not_allow_is_refused_at_once(
    narrow: Served, conditioning: stage_pb2.Conditioning
):
    running = call(narrow, job(conditioning, steps=LONG_STEPS))
    await until_it_runs(running)
    load = (await narrow.describe()).load
    assert load.queue_seconds > 0.4
    assert load.max_queue_seconds == 600
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(call(narrow, job(conditioning), timeout=0.4))
    assert time.monotonic() - began < 0.3, "long before its deadline"
    told = refusal(caught.value)
    assert (told.code, told.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert "deadline" in told.message
    delay = told.details["RetryInfo"].retry_delay
    assert 0.1 <= delay.seconds + delay.nanos / 1e9 <= load.queue_seconds + 1
    running.cancel()


async def test_who_waits_is_told_when_its_job_is_expected_to_start(
    narrow: Served, conditioning: stage_pb2.Conditioning
):
    running = call(narrow, job(conditioning, steps=LONG_STEPS))
    await until_it_runs(running)
    waiting = call(narrow, job(conditioning, steps=LONG_STEPS))
    queued = (await anext(aiter(waiting))).event.queued
    assert queued.position == 1
    assert queued.expected_start_ms > 100
    # Behind a whole long job, where the first waits for what is left of one.
    later = call(narrow, job(conditioning))
    assert (await anext(aiter(later))).event.queued.expected_start_ms > queued.expected_start_ms
    for each in (running, waiting, later):
        each.cancel()


async def test_work_for_longer_than_may_wait_is_refused(
    sd1: Path, conditioning: stage_pb2.Conditioning
):
    async with served("generator", sd1, max_batch_rows=1, max_queue_seconds=0.2) as generator:
        running = call(generator, job(conditioning, steps=LONG_STEPS))
        await until_it_runs(running)
        waiting = call(generator, job(conditioning))  # the first that waits is let in
        await anext(aiter(waiting))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await events(call(generator, job(conditioning)))
        told = refusal(caught.value)
        assert told.reason == "QUEUE_FULL"
        assert "the limit is 0.2 s" in told.message
        running.cancel()
        waiting.cancel()
