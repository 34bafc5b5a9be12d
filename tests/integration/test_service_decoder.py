"""The decoder as a service: pictures as bytes or as a file, and the samples that it refuses."""

from __future__ import annotations

import asyncio
import io
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from carrara.tensors import from_numpy, to_numpy
from carrara.v1 import decoder_pb2, stage_pb2
from integration.in_process import Served, events, refusal, served
from tiny_checkpoints import build_sd1

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(sd1: Path) -> AsyncIterator[Served]:
    async with served("decoder", sd1) as decoder:
        yield decoder


def latents(seed: int, *, cells: tuple[int, int] = (8, 6)) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, 4, *cells), generator=generator).numpy()


async def job_for(stage: Served, array: np.ndarray, *, output_format: int = 0) -> stage_pb2.Job:
    contract = (await stage.describe()).consumes[0].contract
    sample = stage_pb2.Sample(
        contract=stage_pb2.Contract(kind=contract.kind, space=contract.space),
        tensors={"latents": from_numpy(array)},
        height=array.shape[2] * contract.size_factor,
        width=array.shape[3] * contract.size_factor,
    )
    return stage_pb2.Job(sample=sample, output_format=output_format)


async def decode(stage: Served, job: stage_pb2.Job) -> stage_pb2.Result:
    return (await events(stage.stub.Decode(decoder_pb2.DecodeRequest(job=job))))[-1]


async def test_the_picture_is_the_one_that_diffusers_makes(stage: Served, sd1: Path):
    array = latents(1)
    vae = AutoencoderKL.from_pretrained(sd1 / "vae")
    with torch.no_grad():
        pixels = vae.decode(torch.from_numpy(array) / vae.config.scaling_factor).sample
    [wanted] = VaeImageProcessor(vae_scale_factor=8).postprocess(pixels, output_type="pil")
    result = await decode(stage, await job_for(stage, array))
    image = to_numpy(result.sample.tensors["image"])
    assert (result.sample.height, result.sample.width) == (64, 48)
    np.testing.assert_array_equal(image, np.asarray(wanted))
    assert (
        image
        != to_numpy((await decode(stage, await job_for(stage, latents(2)))).sample.tensors["image"])
    ).any()


async def test_png_and_bytes_are_the_same_picture(stage: Served):
    plain = await decode(stage, await job_for(stage, latents(1)))
    job = await job_for(stage, latents(1), output_format=stage_pb2.OUTPUT_FORMAT_PNG)
    file = to_numpy((await decode(stage, job)).sample.tensors["png"]).tobytes()
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(file))), to_numpy(plain.sample.tensors["image"])
    )


async def test_the_result_says_what_it_is_and_what_it_cost(stage: Served):
    result = await decode(stage, await job_for(stage, latents(1)))
    described = await stage.describe()
    assert result.sample.contract.kind == stage_pb2.KIND_IMAGE
    assert result.sample.contract.space == "rgb"
    assert result.sample.contract.producer == described.fingerprint
    assert 0 < result.usage.compute_ms <= result.usage.running_ms
    assert not result.warnings


def _put(array: np.ndarray) -> Callable[[stage_pb2.Job], None]:
    return lambda job: job.sample.tensors["latents"].CopyFrom(from_numpy(array))


def _set(field: str, value: object) -> Callable[[stage_pb2.Job], None]:
    return lambda job: setattr(job.sample, field, value)


def _lie(job: stage_pb2.Job) -> None:
    job.sample.tensors["latents"].data += b"1234"


def _infinite(job: stage_pb2.Job) -> None:
    tensor = job.sample.tensors["latents"]
    tensor.data = struct.pack("<f", float("inf")) + tensor.data[4:]


def _huge(job: stage_pb2.Job) -> None:
    job.sample.tensors["latents"].shape[:] = [1, 4, 257, 256]


BAD_SAMPLES: dict[str, tuple[Callable[[stage_pb2.Job], None], str, str, str]] = {
    "none": (lambda job: job.ClearField("sample"), "BAD_FIELD", "job.sample", "the stage before"),
    "wrong height": (_set("height", 72), "BAD_FIELD", "job.sample.height", "64"),
    "a lying tensor": (_lie, "BAD_FIELD", "job.sample.tensors[latents]", "768 bytes"),
    "infinity": (_infinite, "BAD_FIELD", "job.sample.tensors[latents]", "finite"),
    "too many pixels": (_huge, "BAD_FIELD", "job.sample.tensors[latents]", "4194304"),
    "conditioning": (
        lambda job: job.conditioning.SetInParent(),
        "BAD_FIELD",
        "job.conditioning",
        "none",
    ),
    "steps": (
        lambda job: setattr(job.arguments, "num_inference_steps", 3),
        "BAD_FIELD",
        "job.arguments.num_inference_steps",
        "nothing",
    ),
    "an unknown format": (
        lambda job: setattr(job, "output_format", 9),
        "BAD_FIELD",
        "job.output_format",
        "PNG",
    ),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
async def test_a_bad_field_is_named_with_what_is_allowed_and_the_stage_goes_on_serving(
    stage: Served, name: str
):
    change, reason, field, words = BAD_SAMPLES[name]
    job = await job_for(stage, latents(1))
    change(job)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await decode(stage, job)
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert told.field == field
    assert words in told.message
    assert (await decode(stage, await job_for(stage, latents(1)))).HasField("sample")


@pytest.mark.parametrize(
    "change",
    [
        lambda job: setattr(job.sample.contract, "space", "f00d"),
        lambda job: setattr(job.sample.contract, "kind", stage_pb2.KIND_PIXELS),
        lambda job: setattr(job.sample.contract, "size_factor", 4),
        lambda job: setattr(job.sample.contract, "scaling_factor", 0.13025),
        _put(np.zeros((1, 16, 8, 6), dtype=np.float32)),
        lambda job: job.sample.tensors.clear(),
    ],
    ids=["other VAE", "pixels", "other size factor", "other scale", "other channels", "no latents"],
)
async def test_a_sample_of_another_space_or_structure_is_refused(stage: Served, change):
    job = await job_for(stage, latents(1))
    change(job)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await decode(stage, job)
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTRACT")


async def test_pixels_that_overflow_are_an_error_and_no_black_picture(stage: Served):
    job = await job_for(stage, np.full((1, 4, 8, 8), 3e38, dtype=np.float32))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await decode(stage, job)
    told = refusal(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.INTERNAL, "NUMERICAL")
    assert told.details["ErrorInfo"].metadata["stage"] == "decoder"
    assert "in the decoder" in told.message


async def test_pictures_at_the_same_time_wait_for_each_other_and_are_what_each_is_alone(
    stage: Served,
):
    jobs = [await job_for(stage, latents(seed, cells=(24, 24))) for seed in range(4)]
    alone = [await decode(stage, job) for job in jobs]
    calls = [stage.stub.Decode(decoder_pb2.DecodeRequest(job=job)) for job in jobs]
    together = await asyncio.gather(*(events(call) for call in calls))
    assert max(happened[0].position for happened in together) > 1, "some must have waited"
    assert [happened[-1].sample for happened in together] == [result.sample for result in alone]
