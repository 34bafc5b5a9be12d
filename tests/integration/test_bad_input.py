"""Every bad input of the design's table, put to real processes past the client's own checks.

After each one the same process paints the same picture as before.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from carrara import (
    CarraraError,
    Cascade,
    ContractError,
    InvalidArgumentError,
    NotAStageError,
    Progress,
    StageUnavailableError,
)
from carrara.connections import Request, Stage
from carrara.v1 import stage_pb2, text_encoder_pb2
from integration.processes import cascade_processes, stage_process
from tiny_checkpoints import build_sd1, build_sd2


@dataclass(frozen=True)
class Setting:
    """Three processes, and a job that the generator and one that the decoder would take."""

    checkpoint: Path
    addresses: dict[str, list[str]]
    cascade: Cascade
    generate: stage_pb2.Job
    decode: stage_pb2.Job

    def address(self, role: str) -> str:
        return self.addresses[role.replace("-", "_") + "s"][0]

    def paint(self) -> bytes:
        result = self.cascade.generate("large red circle", seed=7, num_inference_steps=2)
        return result.images[0].image.tobytes()


async def run_job(role: str, address: str, job: stage_pb2.Job) -> stage_pb2.Result:
    stage = Stage(address, role=role)
    try:
        return await stage.run(job, request=Request.lasting(30), on_event=lambda _: None)
    finally:
        await stage.close()


async def encode(address: str, message: text_encoder_pb2.EncodeRequest) -> stage_pb2.Result:
    stage = Stage(address, role="text-encoder")
    try:
        return await stage.encode(message, request=Request.lasting(30))
    finally:
        await stage.close()


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = build_sd1(tmp_path_factory.mktemp("sd1"))
    with cascade_processes(text_encoder=folder, generator=folder, decoder=folder) as stages:
        addresses = {
            "text_encoders": [stages.text_encoder.address],
            "generators": [stages.generator.address],
            "decoders": [stages.decoder.address],
        }
        with Cascade.connect(**addresses) as cascade:
            consumer = cascade.descriptions[2][2].consumes[0].contract
            message = text_encoder_pb2.EncodeRequest(prompt="red circle", guidance=True)
            encoded = asyncio.run(encode(stages.text_encoder.address, message))
            generate = stage_pb2.Job(
                arguments=stage_pb2.Arguments(num_inference_steps=2),
                conditioning=encoded.conditioning,
                random_state=stage_pb2.RandomState(seed=7),
                consumer=consumer,
            )
            made = asyncio.run(run_job("generator", stages.generator.address, generate))
            yield Setting(folder, addresses, cascade, generate, stage_pb2.Job(sample=made.sample))


@pytest.fixture
def goes_on(setting: Setting) -> Iterator[None]:
    before = setting.paint()
    yield
    assert setting.paint() == before


Change = Callable[[stage_pb2.Job], object]


def set_arguments(**values: object) -> Change:
    return lambda job: job.arguments.MergeFrom(stage_pb2.Arguments(**values))  # type: ignore[arg-type]


BAD_ARGUMENTS: list[tuple[Change, str, list[str]]] = [
    (set_arguments(num_inference_steps=0), "num_inference_steps", ["0", "1", "1000"]),
    (set_arguments(num_inference_steps=1001), "num_inference_steps", ["1001", "1000"]),
    (set_arguments(guidance_scale=-0.5), "guidance_scale", ["-0.5", "30"]),
    (set_arguments(guidance_scale=float("nan")), "guidance_scale", ["nan", "30"]),
    (set_arguments(guidance_scale=30.5), "guidance_scale", ["30.5", "30"]),
    (set_arguments(height=20), "height", ["20", "multiple of 8"]),
    (set_arguments(width=0), "width", ["0", "multiple of 8"]),
    (set_arguments(height=4096, width=4096), "height", ["4096", "4194304"]),
    (set_arguments(scheduler="dimm"), "scheduler", ["dimm", "ddim", "unipc"]),
]


@pytest.mark.usefixtures("goes_on")
@pytest.mark.parametrize(
    ("change", "field", "said"), BAD_ARGUMENTS, ids=lambda value: str(value)[:20]
)
def test_a_bad_argument_is_refused_with_field_value_and_range(
    setting: Setting, change: Change, field: str, said: list[str]
) -> None:
    job = stage_pb2.Job()
    job.CopyFrom(setting.generate)
    change(job)
    with pytest.raises(InvalidArgumentError) as refused:
        asyncio.run(run_job("generator", setting.address("generator"), job))
    [violation] = refused.value.field_violations
    assert violation.field == f"job.arguments.{field}"
    assert all(word in violation.description for word in said), violation.description
    assert refused.value.role == "generator"


@pytest.mark.usefixtures("goes_on")
@pytest.mark.parametrize(
    ("message", "said"),
    [
        (text_encoder_pb2.EncodeRequest(), "prompt"),
        (text_encoder_pb2.EncodeRequest(prompt="x" * 8193), "8192"),
    ],
    ids=["absent", "too-long"],
)
def test_a_prompt_that_is_absent_or_too_long_is_refused(
    setting: Setting, message: text_encoder_pb2.EncodeRequest, said: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        asyncio.run(encode(setting.address("text-encoder"), message))


def lie_about_the_shape(job: stage_pb2.Job) -> None:
    tensor = job.conditioning.tensors["prompt_embeds"]
    tensor.shape[1] *= 2


def cut_the_data(job: stage_pb2.Job) -> None:
    tensor = job.conditioning.tensors["prompt_embeds"]
    tensor.data = tensor.data[:-3]


def claim_more_than_memory(job: stage_pb2.Job) -> None:
    tensor = job.conditioning.tensors["prompt_embeds"]
    tensor.ClearField("shape")
    tensor.shape.extend([2**31, 2**31, 2**31])


def put_nan(job: stage_pb2.Job) -> None:
    tensor = job.conditioning.tensors["prompt_embeds"]
    tensor.data = b"\x00\x00\xc0\x7f" + tensor.data[4:]


@pytest.mark.usefixtures("goes_on")
@pytest.mark.parametrize(
    "change", [lie_about_the_shape, cut_the_data, claim_more_than_memory, put_nan]
)
def test_a_truncated_or_lying_tensor_is_refused_by_name(setting: Setting, change: Change) -> None:
    job = stage_pb2.Job()
    job.CopyFrom(setting.generate)
    change(job)
    assert job != setting.generate
    with pytest.raises((InvalidArgumentError, ContractError), match="prompt_embeds"):
        asyncio.run(run_job("generator", setting.address("generator"), job))


@pytest.mark.usefixtures("goes_on")
def test_a_truncated_sample_is_refused_by_the_decoder(setting: Setting) -> None:
    job = stage_pb2.Job()
    job.CopyFrom(setting.decode)
    job.sample.tensors["latents"].data = job.sample.tensors["latents"].data[:100]
    with pytest.raises(InvalidArgumentError, match="latents"):
        asyncio.run(run_job("decoder", setting.address("decoder"), job))


@pytest.mark.usefixtures("goes_on")
@pytest.mark.parametrize("difference", ["structure", "provenance"])
def test_a_decoder_that_does_not_fit_is_refused_at_connect_and_by_the_stage_itself(
    setting: Setting, difference: str, tmp_path: Path
) -> None:
    if difference == "structure":
        other = build_sd2(tmp_path / "other")
    else:
        other = build_sd1(tmp_path / "other")
        vae = AutoencoderKL.from_pretrained(other / "vae")
        with torch.no_grad():
            vae.decoder.conv_out.bias += 0.25
        vae.save_pretrained(other / "vae")
    with stage_process("decoder", checkpoint=other) as decoder:
        addresses = setting.addresses | {"decoders": [decoder.address]}
        with pytest.raises(ContractError) as refused:
            Cascade.connect(**addresses).close()
        assert setting.address("generator") in str(refused.value)
        assert decoder.address in str(refused.value)
        with pytest.raises(ContractError):
            asyncio.run(run_job("decoder", decoder.address, setting.decode))


def test_an_address_that_is_no_stage_is_told_as_such(setting: Setting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(CarraraError) as refused:
            Cascade.connect(**(setting.addresses | {"decoders": [address]}))
        assert isinstance(refused.value, NotAStageError | StageUnavailableError)
        assert address in str(refused.value)


def test_killing_the_only_generator_in_the_middle_names_role_and_address(
    setting: Setting,
) -> None:
    with stage_process("generator", checkpoint=setting.checkpoint) as generator:

        def paint_and_kill(cascade: Cascade) -> None:
            for event in cascade.stream("red", num_inference_steps=900, timeout_seconds=120):
                if isinstance(event, Progress) and event.role == "generator" and event.step > 2:
                    generator.process.kill()
                    generator.process.wait()

        addresses = setting.addresses | {"generators": [generator.address]}
        begin = time.monotonic()
        with Cascade.connect(**addresses) as cascade, pytest.raises(StageUnavailableError) as error:
            paint_and_kill(cascade)
        assert generator.process.returncode == -9, "it was killed, in the middle of the job"
        assert time.monotonic() - begin < 60
        assert error.value.role == "generator"
        assert error.value.address == generator.address
        assert generator.address in str(error.value)
