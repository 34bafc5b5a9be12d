"""The generator as a service: what it refuses and how, and what shares a batch with what."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio
import torch

from carrara.tensors import from_numpy, to_numpy
from carrara.v1 import generator_pb2, stage_pb2
from carrara_models.checkpoints import open_checkpoint
from carrara_models.generators.latent_unet import LatentUNet
from carrara_models.pruning import prune
from integration.in_process import (
    Served,
    encode,
    events,
    generate,
    held,
    refusal,
    served,
    was_called,
)
from tiny_checkpoints import build_sd1, build_sd2

# One server for the whole module: whatever a test does to it, the next one finds it serving.
pytestmark = pytest.mark.asyncio(loop_scope="module")

Code = grpc.StatusCode
SLOW_STEPS = 900  # of the tiny UNet: several seconds


@dataclass
class Setting:
    """A generator, and the job that it takes as a base for all the others."""

    generator: Served
    job: stage_pb2.Job

    def but(self, **arguments: object) -> stage_pb2.Job:
        """The job with other arguments, or another seed."""
        job = stage_pb2.Job()
        job.CopyFrom(self.job)
        if "seed" in arguments:
            job.random_state.seed = arguments.pop("seed")
        for name, value in arguments.items():
            setattr(job.arguments, name, value)
        return job

    def call(self, job: stage_pb2.Job, **options: object) -> grpc.aio.UnaryStreamCall:
        return self.generator.stub.Generate(generator_pb2.GenerateRequest(job=job), **options)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


async def conditioning(checkpoint: Path) -> stage_pb2.Conditioning:
    async with served("text-encoder", checkpoint) as text_encoder:
        return (await encode(text_encoder, "a red circle", "blue")).conditioning


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def setting(sd1: Path) -> AsyncIterator[Setting]:
    job = stage_pb2.Job(
        conditioning=await conditioning(sd1),
        random_state=stage_pb2.RandomState(seed=7),
        arguments=stage_pb2.Arguments(num_inference_steps=3, scheduler="ddim"),
    )
    async with served("generator", sd1, max_queue_jobs=16, max_batch_rows=16) as generator:
        yield Setting(generator, job)


def _set(path: str, value: object) -> Callable[[stage_pb2.Job], None]:
    def change(job: stage_pb2.Job) -> None:
        *parents, name = path.split(".")
        message = job
        for parent in parents:
            message = getattr(message, parent)
        setattr(message, name, value)

    return change


def _tensor(**changes: object) -> Callable[[stage_pb2.Job], None]:
    def change(job: stage_pb2.Job) -> None:
        tensor = job.conditioning.tensors["prompt_embeds"]
        if "shape" in changes:
            tensor.shape[:] = changes["shape"]
        if "data" in changes:
            tensor.data = changes["data"]
        if "data_type" in changes:
            tensor.data_type = changes["data_type"]

    return change


def _nan(job: stage_pb2.Job) -> None:
    tensor = job.conditioning.tensors["prompt_embeds"]
    tensor.data = struct.pack("<f", float("nan")) + tensor.data[4:]


def _unknown(where: Callable[[stage_pb2.Job], object]) -> Callable[[stage_pb2.Job], None]:
    def change(job: stage_pb2.Job) -> None:
        where(job).MergeFromString(b"\xf8\x3f\x01")  # field 1023, a varint

    return change


def _clear(name: str) -> Callable[[stage_pb2.Job], None]:
    return lambda job: job.ClearField(name)


BAD_FIELDS = {
    "no step": (_set("arguments.num_inference_steps", 0), "arguments.num_inference_steps", "1 to"),
    "too many steps": (_set("arguments.num_inference_steps", 1001), "", "1 to 1000"),
    "negative guidance": (_set("arguments.guidance_scale", -0.5), "arguments.guidance_scale", "0"),
    "guidance NaN": (_set("arguments.guidance_scale", float("nan")), "", "nan"),
    "too much guidance": (_set("arguments.guidance_scale", 30.5), "", "0 to 30"),
    "unknown scheduler": (_set("arguments.scheduler", "magic"), "arguments.scheduler", "euler"),
    "odd height": (_set("arguments.height", 65), "arguments.height", "multiple of 8"),
    "no width": (_set("arguments.width", 0), "arguments.width", "8 to"),
    "too many pixels": (_set("arguments.height", 131072), "arguments.height", "4194304"),
    "rare previews": (_set("preview_interval_steps", 1001), "preview_interval_steps", "1 to 1000"),
    "a format": (_set("output_format", 2), "output_format", "latents"),
    "a sample": (lambda job: job.sample.SetInParent(), "sample", "noise"),
    "no conditioning": (_clear("conditioning"), "conditioning", "text encoder"),
    "no random state": (_clear("random_state"), "random_state", "seed"),
    "a truncated tensor": (_tensor(data=b"1234"), "conditioning.tensors[prompt_embeds]", "4"),
    "another type": (_tensor(data_type=99), "conditioning.tensors[prompt_embeds]", "99"),
    "NaN embeddings": (_nan, "conditioning.tensors[prompt_embeds]", "NaN"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
async def test_a_bad_field_is_named_with_what_is_allowed_and_the_stage_goes_on_serving(
    setting: Setting, name: str
):
    change, field, words = BAD_FIELDS[name]
    job = setting.but()
    change(job)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(setting.call(job))
    told = refusal(caught.value)
    assert (told.code, told.reason) == (Code.INVALID_ARGUMENT, "BAD_FIELD")
    assert told.field.startswith(f"job.{field}")
    assert words in told.message
    assert (await generate(setting.generator, setting.job)).HasField("sample")


@pytest.mark.parametrize(
    "where",
    [
        lambda job: job,
        lambda job: job.arguments,
        lambda job: job.conditioning.contract,
        lambda job: job.conditioning.tensors["prompt_embeds"],
    ],
    ids=["job", "arguments", "contract", "map value"],
)
async def test_a_field_from_a_newer_client_is_refused_at_any_depth(setting: Setting, where):
    job = setting.but()
    _unknown(where)(job)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(setting.call(job))
    told = refusal(caught.value)
    assert (told.code, told.reason) == (Code.INVALID_ARGUMENT, "UNKNOWN_FIELD")
    assert "1023" in told.message


@pytest.mark.parametrize(
    ("state", "words"),
    [(b"123", "3 bytes; allowed: 5056"), (b"\xff" * 5056, "not the state of a torch")],
)
async def test_an_unusable_random_state_is_refused(setting: Setting, state: bytes, words: str):
    job = setting.but()
    job.random_state.torch_cpu = state
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(setting.call(job))
    told = refusal(caught.value)
    assert (told.code, told.reason) == (Code.INVALID_ARGUMENT, "STATE")
    assert words in told.message


async def test_a_random_state_draws_what_its_seed_draws(setting: Setting):
    by_seed = await generate(setting.generator, setting.job)
    job = setting.but()
    state = torch.Generator("cpu").manual_seed(7).get_state()
    job.random_state.torch_cpu = state.numpy().tobytes()
    by_state = await generate(setting.generator, job)
    assert by_state.sample.tensors == by_seed.sample.tensors
    other = await generate(setting.generator, setting.but(seed=8))
    assert other.sample.tensors != by_seed.sample.tensors


@pytest.mark.parametrize(
    ("change", "sides"),
    [
        (_set("conditioning.contract.space", "f00d"), ["f00d", "conditioning"]),
        (_set("conditioning.contract.kind", stage_pb2.KIND_LATENTS), ["latents", "conditioning"]),
        (_tensor(shape=[1, 154, 16]), ["[1, 154, 16]", "[1, any, 32]"]),
        (_set("consumer.size_factor", 4), ["size factor 8", "size factor 4"]),
        (_set("consumer.space", "f00d"), ["f00d"]),
    ],
    ids=["other space", "other kind", "other width", "other size factor", "other VAE"],
)
async def test_what_does_not_fit_is_refused_with_both_sides_before_any_compute(
    setting: Setting, change, sides: list[str]
):
    job = setting.but()
    job.consumer.CopyFrom((await setting.generator.describe()).produces[0])
    change(job)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(setting.call(job))
    told = refusal(caught.value)
    assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "CONTRACT")
    [violation] = told.details["PreconditionFailure"].violations
    assert violation.type == "CONTRACT"
    for side in sides:
        assert side in violation.description


async def test_a_job_for_other_weights_is_refused_with_both_fingerprints(setting: Setting):
    job = setting.but()
    job.stage_fingerprint = "f00d"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(setting.call(job))
    told = refusal(caught.value)
    assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "FINGERPRINT")
    assert "f00d" in told.message
    own = (await setting.generator.describe()).fingerprint
    assert own in told.message
    job.stage_fingerprint = own
    assert (await generate(setting.generator, job)).HasField("sample")


async def test_an_unknown_space_is_a_warning_in_the_result(setting: Setting):
    job = setting.but()
    job.conditioning.contract.space = ""
    result = await generate(setting.generator, job)
    [warning] = result.warnings
    assert warning.code == stage_pb2.WARNING_CODE_CONTRACT_UNVERIFIED
    assert warning.field == "job.conditioning"


async def test_the_result_says_what_it_is_who_made_it_and_what_it_cost(setting: Setting):
    described = await setting.generator.describe()
    result = await generate(setting.generator, setting.job)
    contract = result.sample.contract
    assert contract.kind == stage_pb2.KIND_LATENTS
    assert contract.space == described.produces[0].space != ""
    assert contract.producer == described.fingerprint
    assert result.provenance.numerics == stage_pb2.NUMERICS_EXACT
    assert result.provenance.num_threads == 1
    assert len(result.sample.random_state.torch_cpu) == 5056
    usage = result.usage
    assert (usage.steps, usage.rows) == (3, 6)
    assert 0 < usage.compute_ms <= usage.running_ms
    assert usage.bytes_in > 0
    assert usage.bytes_out > 0


async def test_a_generator_without_the_vae_takes_the_size_from_its_consumer(
    sd1: Path, tmp_path: Path
):
    folder = prune(open_checkpoint(sd1, stage="generator"), output=tmp_path / "pruned")
    job = stage_pb2.Job(
        conditioning=await conditioning(sd1),
        random_state=stage_pb2.RandomState(seed=7),
        arguments=stage_pb2.Arguments(num_inference_steps=2),
    )
    async with served("decoder", sd1) as decoder:
        consumed = (await decoder.describe()).consumes[0].contract
    async with served("generator", folder) as generator:
        assert (await generator.describe()).produces[0].size_factor == 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(generator, job)
        assert refusal(caught.value).field == "job.consumer"
        job.consumer.CopyFrom(consumed)
        result = await generate(generator, job)
    async with served("generator", sd1) as whole:
        same = await generate(whole, job)
    assert result.sample.contract.size_factor == consumed.size_factor
    assert result.sample.tensors == same.sample.tensors


async def test_conditioning_of_another_checkpoint_is_refused(setting: Setting, tmp_path: Path):
    job = setting.but()
    job.conditioning.CopyFrom(await conditioning(build_sd2(tmp_path / "sd2")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(setting.call(job))
    assert refusal(caught.value).reason == "CONTRACT"


async def test_sixteen_unequal_requests_at_once_paint_what_each_paints_alone(setting: Setting):
    schedulers = ("ddpm", "ddim", "pndm", "lms", "euler", "euler-ancestral", "heun", "unipc")
    jobs = []
    for index in range(16):
        job = setting.but(
            seed=2**40 + index,
            num_inference_steps=2 + index % 5,
            guidance_scale=1.5 + index,
            scheduler=schedulers[index % len(schedulers)],
            width=64 + 8 * (index % 2),
        )
        if index % 3 == 0:
            del job.conditioning.tensors["negative_prompt_embeds"]
            job.arguments.guidance_scale = 1.0
        jobs.append(job)
    alone = [await generate(setting.generator, job) for job in jobs]
    assert len({to_numpy(r.sample.tensors["latents"]).tobytes() for r in alone}) == 16
    together = await asyncio.gather(*(generate(setting.generator, job) for job in jobs))
    shared = [result.usage.compute_ms < 0.9 * result.usage.running_ms for result in together]
    assert any(shared), "they must have shared the device"
    for one, other in zip(alone, together, strict=True):
        assert one.sample == other.sample


async def first_progress(call: grpc.aio.UnaryStreamCall) -> None:
    async for response in call:
        if response.event.HasField("progress"):
            return
    raise AssertionError("the job ended before its first step")


async def until_running(setting: Setting, jobs: int, *, rows: int) -> None:
    """A job runs from when it leaves the line; its rows count once it has been started."""
    async with asyncio.timeout(30):
        while True:
            load = (await setting.generator.describe()).load
            if (load.jobs_running, load.rows) == (jobs, rows):
                return
            await asyncio.sleep(0.005)


async def test_cancelling_frees_the_row_and_leaves_the_neighbours_bytes(setting: Setting):
    neighbour_job = setting.but(seed=1, num_inference_steps=60)
    alone = await generate(setting.generator, neighbour_job)
    cancelled = setting.call(setting.but(seed=2, num_inference_steps=SLOW_STEPS))
    await first_progress(cancelled)
    neighbour = asyncio.create_task(generate(setting.generator, neighbour_job))
    await until_running(setting, 2, rows=4)
    cancelled.cancel()
    await until_running(setting, 1, rows=2)
    assert not neighbour.done(), "the neighbour must still be running"
    assert (await neighbour).sample == alone.sample
    assert await cancelled.code() == Code.CANCELLED


async def test_a_running_job_past_its_deadline_says_stage_and_step_and_frees_its_row(
    setting: Setting,
):
    call = setting.call(setting.but(num_inference_steps=SLOW_STEPS), timeout=0.6)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(call)
    told = refusal(caught.value)
    assert (told.code, told.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE")
    assert told.details["ErrorInfo"].metadata["stage"] == "generator"
    assert 0 < int(told.details["ErrorInfo"].metadata["step"]) < SLOW_STEPS
    await until_running(setting, 0, rows=0)


async def test_a_full_queue_and_a_deadline_in_it_are_answered_at_once(
    sd1: Path, monkeypatch: pytest.MonkeyPatch
):
    job = stage_pb2.Job(
        conditioning=await conditioning(sd1),
        random_state=stage_pb2.RandomState(seed=7),
        arguments=stage_pb2.Arguments(num_inference_steps=2, scheduler="ddim"),
    )
    async with served("generator", sd1, max_queue_jobs=1, max_batch_rows=1) as generator:
        setting = Setting(generator, job)
        # Its network comes to a stand, so that nobody could know that the deadline is too early.
        with held(monkeypatch, LatentUNet, "predict") as called:
            running = setting.call(job)
            await anext(aiter(running))
            await was_called(called)
            waiting = aiter(setting.call(job, timeout=5.0))
            assert (await anext(waiting)).event.queued.position == 1
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(generator, job)
            told = refusal(caught.value)
            assert (told.code, told.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
            assert told.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await events(waiting)
            told = refusal(caught.value)
            assert (told.code, told.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE")
            assert "in the queue of the generator" in told.message
            load = (await generator.describe()).load
            assert (load.jobs_queued, load.jobs_running) == (0, 1)
            running.cancel()
        await until_running(setting, 0, rows=0)
        assert (await generate(generator, job)).HasField("sample")


async def test_overflowing_latents_are_an_error_with_its_step_and_no_black_picture(
    setting: Setting,
):
    job = setting.but()
    for tensor in job.conditioning.tensors.values():
        array = np.full(tuple(tensor.shape), 3e38, dtype=np.float32)
        tensor.CopyFrom(from_numpy(array))
    neighbour = asyncio.create_task(
        generate(setting.generator, setting.but(seed=1, num_inference_steps=40))
    )
    await until_running(setting, 1, rows=2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(setting.call(job))
    told = refusal(caught.value)
    assert (told.code, told.reason) == (Code.INTERNAL, "NUMERICAL")
    assert told.details["ErrorInfo"].metadata == {"stage": "generator", "step": "1"}
    assert (await neighbour).HasField("sample")


async def test_the_callers_request_id_comes_back(setting: Setting):
    metadata = (("x-request-id", "abc-123"),)
    call = setting.call(setting.job, metadata=metadata)
    await events(call)
    assert dict(await call.initial_metadata())["x-request-id"] == "abc-123"
    job = setting.but(num_inference_steps=0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(setting.call(job, metadata=metadata))
    assert refusal(caught.value).details["RequestInfo"].request_id == "abc-123"


async def test_bytes_that_are_no_message_are_refused_as_such(setting: Setting):
    method = "/carrara.v1.GeneratorService/Generate"
    call = setting.generator.channel.unary_stream(method)(b"\x0a\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert (refusal(caught.value).code, refusal(caught.value).field) == (
        Code.INVALID_ARGUMENT,
        "request",
    )


async def test_a_message_over_the_limit_is_refused_with_size_and_limit(setting: Setting):
    job = setting.but()
    job.conditioning.tensors["prompt_embeds"].data = bytes(65 * 1024 * 1024)
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(setting.call(job))
    assert caught.value.code() == Code.RESOURCE_EXHAUSTED
    assert str(64 * 1024 * 1024) in caught.value.details()
    assert time.monotonic() - began < 10
    assert (await generate(setting.generator, setting.job)).HasField("sample")
