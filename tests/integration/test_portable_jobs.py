"""Running jobs that a draining replica hands on: they go on elsewhere, with the same bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from callers import Painted, run_callers
from carrara import AsyncCascade
from carrara.v1 import decoder_pb2, generator_pb2, stage_pb2
from integration.in_process import Served, encode, events, generate, refusal, served
from tiny_checkpoints import build_sd1

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEPS = 40
# Of those that step together, with one call for a step and with two, with history and with noise;
# and of those that step by themselves.
ARGUMENTS: list[dict[str, Any]] = [
    {"scheduler": "ddim"},
    {"scheduler": "ddim", "eta": 0.7},
    {"scheduler": "dpm++2m"},
    {"scheduler": "euler-ancestral"},
    {"scheduler": "heun"},
    {"scheduler": "pndm"},
    {"scheduler": "unipc"},
]


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def jobs(sd1: Path) -> list[stage_pb2.Job]:
    async with served("text-encoder", sd1) as text_encoder:
        conditioning = (await encode(text_encoder, "a red circle", "blue")).conditioning
    return [
        stage_pb2.Job(
            conditioning=conditioning,
            random_state=stage_pb2.RandomState(seed=seed),
            arguments=stage_pb2.Arguments(num_inference_steps=STEPS, **arguments),
            resumable=True,
        )
        for seed, arguments in enumerate(ARGUMENTS)
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def generator(sd1: Path) -> AsyncIterator[Served]:
    """The replica that stays."""
    async with served("generator", sd1) as generator:
        yield generator


@asynccontextmanager
async def draining_after(
    sd1: Path, jobs: list[stage_pb2.Job], *, steps: int
) -> AsyncIterator[list[asyncio.Task[list[Any]]]]:
    """Runs jobs on a replica that drains once each has done some steps; gives their events."""
    async with served("generator", sd1, drain_pause_seconds=0) as doomed:
        calls = [
            aiter(doomed.stub.Generate(generator_pb2.GenerateRequest(job=job))) for job in jobs
        ]
        for call in calls:
            while (await anext(call)).event.progress.step < steps:
                pass
        tasks = [asyncio.ensure_future(events(call)) for call in calls]
        ending = asyncio.ensure_future(doomed.server.drain())
        yield tasks
        await ending


def resuming(job: stage_pb2.Job, state: stage_pb2.JobState) -> stage_pb2.Job:
    resumed = stage_pb2.Job(resume=state)
    resumed.MergeFrom(job)
    return resumed


async def test_suspended_jobs_go_on_with_the_same_bytes(
    sd1: Path, jobs: list[stage_pb2.Job], generator: Served
):
    expected = [await generate(generator, job) for job in jobs]
    async with draining_after(sd1, jobs, steps=5) as tasks:
        states = [(await task)[-1] for task in tasks]
    for job, state, undisturbed in zip(jobs, states, expected, strict=True):
        assert isinstance(state, stage_pb2.JobState), "it was suspended"
        assert 5 <= state.step < STEPS
        *progress, result = await events(
            generator.stub.Generate(generator_pb2.GenerateRequest(job=resuming(job, state)))
        )
        steps = [event.step for event in progress if isinstance(event, stage_pb2.Progress)]
        assert steps == list(range(state.step + 1, undisturbed.usage.steps + 1))
        assert result.sample == undisturbed.sample
        assert result.usage.steps == undisturbed.usage.steps
        assert result.usage.rows == undisturbed.usage.rows
        assert result.usage.running_ms > state.usage.running_ms > 0


async def test_a_job_whose_caller_cannot_go_on_is_finished(sd1: Path, jobs: list[stage_pb2.Job]):
    job = stage_pb2.Job()
    job.CopyFrom(jobs[0])
    job.resumable = False
    async with draining_after(sd1, [job], steps=2) as [task]:
        assert isinstance((await task)[-1], stage_pb2.Result)


async def test_a_state_that_is_of_something_else_is_refused(
    sd1: Path, jobs: list[stage_pb2.Job], generator: Served
):
    async with draining_after(sd1, [jobs[2]], steps=2) as [task]:
        state = (await task)[-1]

    async def refused(job: stage_pb2.Job, **changes: Any) -> Any:
        changed = stage_pb2.JobState()
        changed.CopyFrom(state)
        for name, change in changes.items():
            change(getattr(changed, name)) if callable(change) else setattr(changed, name, change)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(generator, resuming(job, changed))
        return refusal(caught.value)

    for told, changes in {
        "provenance.num_threads": {"provenance": lambda made: setattr(made, "num_threads", 77)},
        "job_digest": {"job_digest": b"another"},
        f"step: {STEPS}": {"step": STEPS},
        r"tensors[latents]": {"tensors": lambda tensors: tensors.pop("latents")},
        "random_state": {"random_state": lambda state: setattr(state, "seed", 3)},
    }.items():
        refusal_told = await refused(jobs[2], **changes)
        assert refusal_told.code is grpc.StatusCode.FAILED_PRECONDITION, told
        assert refusal_told.reason == "STATE", told
        assert told in refusal_told.message
    assert (await refused(jobs[0])).reason == "STATE", "it is the state of the third job"
    nan = {"tensors": lambda tensors: setattr(tensors["latents"], "data", b"\xff" * 1024)}
    assert (await refused(jobs[2], **nan)).field == "job.resume.tensors[latents]"


async def test_a_decoder_without_steps_has_nothing_to_go_on_from(sd1: Path):
    async with served("decoder", sd1) as decoder:
        assert not (await decoder.describe()).resumable
        job = stage_pb2.Job(resume=stage_pb2.JobState(step=1))
        job.sample.CopyFrom(await _black(decoder))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await events(decoder.stub.Decode(decoder_pb2.DecodeRequest(job=job)))
        assert refusal(caught.value).field == "job.resume"
        job.ClearField("resume")
        job.resumable = True
        [*_, result] = await events(decoder.stub.Decode(decoder_pb2.DecodeRequest(job=job)))
        assert result.sample.height


async def _black(decoder: Served) -> stage_pb2.Sample:
    contract = (await decoder.describe()).consumes[0].contract
    channels = contract.tensors[0].shape[1]
    sample = stage_pb2.Sample(contract=contract, height=8 * contract.size_factor)
    sample.width = sample.height
    sample.contract.ClearField("tensors")
    latents = sample.tensors["latents"]
    latents.data_type, latents.data = 1, bytes(4 * channels * 64)
    latents.shape.extend([1, channels, 8, 8])
    return sample


async def paint(addresses: dict[str, list[str]], seeds: range, **how: Any) -> list[Painted]:
    async with await AsyncCascade.connect(**addresses) as cascade:
        return await run_callers(cascade, seeds, callers=16, steps=8, **how)


async def test_draining_one_of_two_replicas_during_200_jobs_loses_neither_a_job_nor_a_step(
    sd1: Path,
):
    async with (
        served("text-encoder", sd1) as text_encoder,
        served("generator", sd1) as stays,
        served("generator", sd1, drain_pause_seconds=0) as doomed,
        served("decoder", sd1) as decoder,
    ):
        addresses = {
            "text_encoders": [text_encoder.server.address],
            "generators": [stays.server.address],
            "decoders": [decoder.server.address],
        }
        expected = {each.seed: each.sha256 for each in await paint(addresses, range(200))}
        both = f"{doomed.server.address},{stays.server.address}"
        ended: list[Painted] = []
        ending: list[asyncio.Task[None]] = []

        def drain_after_40(painted: Painted) -> None:
            ended.append(painted)
            if len(ended) == 40:
                ending.append(asyncio.ensure_future(doomed.server.drain()))

        painted = await paint(
            addresses | {"generators": [both]}, range(200), on_painted=drain_after_40
        )
        await ending[0]
        suspended = doomed.server.metrics.registry.get_sample_value(
            "carrara_jobs_ended_total", {"outcome": "suspended"}
        )
        assert suspended, "jobs were running on it"
        assert [each.error for each in painted if each.error] == []
        assert {each.seed: each.sha256 for each in painted} == expected
        steps = sum(each.steps["generator"] for each in painted)
        assert steps == 200 * (8 + 1), "none was done twice; PNDM takes one more"


async def test_a_state_that_the_other_replica_cannot_use_costs_steps_and_no_picture(sd1: Path):
    async with (
        served("text-encoder", sd1) as text_encoder,
        served("generator", sd1, dtype="bfloat16") as stays,
        served("generator", sd1, drain_pause_seconds=0) as doomed,
        served("decoder", sd1) as decoder,
        await AsyncCascade.connect(
            text_encoders=[text_encoder.server.address],
            generators=[f"{doomed.server.address},{stays.server.address}"],
            decoders=[decoder.server.address],
        ) as cascade,
    ):
        steps: list[int] = []
        request = cascade.stream("large red circle", seed=1, num_inference_steps=STEPS)
        async for event in request:
            if type(event).__name__ == "Progress" and event.role == "generator":
                steps.append(event.step)
                if event.step == 5:
                    ending = asyncio.ensure_future(doomed.server.drain())
        await ending
        result = event.result
    first = steps.index(1, 1)
    assert 5 <= first < STEPS, "the first replica had begun"
    assert steps[first:] == list(range(1, STEPS + 2)), "the second one began anew"
    assert result.usage[1].attempts == 3, "suspended, refused, painted"
