"""Stages as an operator runs them: processes that get ready, tell what they are, drain, and end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from carrara.tensors import to_numpy
from carrara.v1 import (
    decoder_pb2,
    decoder_pb2_grpc,
    generator_pb2,
    generator_pb2_grpc,
    stage_pb2,
    stage_pb2_grpc,
    text_encoder_pb2,
    text_encoder_pb2_grpc,
)
from integration.in_process import refusal
from integration.processes import Cascade, StageProcess, cascade_processes, stage_process
from tiny_checkpoints import build_sd1

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
OWN_SERVICES = {
    "text-encoder": "carrara.v1.TextEncoderService",
    "generator": "carrara.v1.GeneratorService",
    "decoder": "carrara.v1.DecoderService",
}
SLOW_STEPS = 900


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


@pytest.fixture(scope="module")
def cascade(sd1: Path) -> Iterator[Cascade]:
    with cascade_processes(text_encoder=sd1, generator=sd1, decoder=sd1) as cascade:
        yield cascade


def stages(cascade: Cascade) -> list[StageProcess]:
    return [cascade.text_encoder, cascade.generator, cascade.decoder]


def describe(address: str) -> stage_pb2.DescribeResponse:
    with grpc.insecure_channel(address) as channel:
        return stage_pb2_grpc.StageServiceStub(channel).Describe(
            stage_pb2.DescribeRequest(), timeout=10
        )


def test_a_ready_stage_is_healthy_and_reflection_lists_its_services(cascade: Cascade):
    for stage in stages(cascade):
        own = OWN_SERVICES[stage.role]
        with grpc.insecure_channel(stage.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", own):
                request = health_pb2.HealthCheckRequest(service=service)
                assert health.Check(request, timeout=10).status == SERVING
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            [answer] = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([request]), timeout=10
            )
        listed = {service.name for service in answer.list_services_response.service}
        assert {own, "carrara.v1.StageService", "grpc.health.v1.Health"} <= listed


def test_describe_tells_what_the_address_is_and_what_fits_it(cascade: Cascade, sd1: Path):
    encoder, generator, decoder = (describe(stage.address) for stage in stages(cascade))
    roles = [answer.role for answer in (encoder, generator, decoder)]
    assert roles == [stage_pb2.ROLE_TEXT_ENCODER, stage_pb2.ROLE_GENERATOR, stage_pb2.ROLE_DECODER]
    assert [c.name for c in generator.components] == ["unet", "scheduler"]
    assert encoder.produces[0].space == generator.consumes[0].contract.space != ""
    assert generator.produces[0].space == decoder.consumes[0].contract.space != ""
    assert decoder.consumes[0].contract.size_factor == 8
    assert len({encoder.fingerprint, generator.fingerprint, decoder.fingerprint}) == 3
    assert encoder.max_prompt_bytes == 8192
    arguments = {argument.name: argument for argument in generator.arguments}
    assert arguments["scheduler"].choices[0] == "pndm"
    assert (arguments["height"].default_number, arguments["height"].multiple_of) == (64, 8)
    for answer in (encoder, generator, decoder):
        assert answer.family == "stable-diffusion"
        assert answer.checkpoint == str(sd1)
        assert answer.max_message_bytes == 64 * 1024 * 1024
        assert answer.max_pixels == 2048 * 2048
        assert answer.provenance.num_threads == 1
        assert answer.provenance.numerics == stage_pb2.NUMERICS_EXACT
        texts = 2 if answer is encoder else 1  # of a request
        assert answer.load.max_queue_jobs == 64 * texts
        assert set(answer.provenance.versions) == {"carrara", "torch", "diffusers", "transformers"}


def test_the_stages_chained_by_hand_paint_a_picture(cascade: Cascade):
    encoder, generator, decoder = (
        grpc.insecure_channel(stage.address) for stage in stages(cascade)
    )
    with encoder, generator, decoder:
        encoded = text_encoder_pb2_grpc.TextEncoderServiceStub(encoder).Encode(
            text_encoder_pb2.EncodeRequest(prompt="a red circle", guidance=True), timeout=20
        )
        job = stage_pb2.Job(
            conditioning=encoded.result.conditioning,
            random_state=stage_pb2.RandomState(seed=2**40),
            arguments=stage_pb2.Arguments(num_inference_steps=2),
        )
        *_, last = generator_pb2_grpc.GeneratorServiceStub(generator).Generate(
            generator_pb2.GenerateRequest(job=job), timeout=20
        )
        job = stage_pb2.Job(sample=last.event.result.sample)
        *_, last = decoder_pb2_grpc.DecoderServiceStub(decoder).Decode(
            decoder_pb2.DecodeRequest(job=job), timeout=20
        )
    image = to_numpy(last.event.result.sample.tensors["image"])
    assert image.shape == (64, 64, 3)
    assert image.std() > 0


def test_the_log_is_json_and_names_the_request(cascade: Cascade):
    with grpc.insecure_channel(cascade.decoder.address) as channel:
        stage_pb2_grpc.StageServiceStub(channel).Describe(
            stage_pb2.DescribeRequest(), metadata=[("x-request-id", "find-me")], timeout=10
        )
    entries = [json.loads(line) for line in cascade.decoder.log.splitlines()]
    [entry] = [entry for entry in entries if entry.get("request_id") == "find-me"]
    assert entry["method"] == "/carrara.v1.StageService/Describe"
    assert entry["code"] == "OK"
    assert entry["duration_ms"] > 0
    assert entry["response_bytes"] > 0


class Generation:
    """A job under way on another thread, and how it ended."""

    def __init__(self, channel: grpc.Channel, job: stage_pb2.Job) -> None:
        self.events: list[str] = []
        self.error: grpc.RpcError | None = None
        self._call = generator_pb2_grpc.GeneratorServiceStub(channel).Generate(
            generator_pb2.GenerateRequest(job=job), timeout=120
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self.events.append(response.event.WhichOneof("event"))
        except grpc.RpcError as error:
            self.error = error

    def wait_for(self, event: str) -> None:
        until = time.monotonic() + 30
        while event not in self.events:
            assert time.monotonic() < until, f"no {event}: {self.events} {self.error}"
            time.sleep(0.01)

    def join(self) -> None:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()


def test_sigterm_finishes_what_runs_hands_back_what_waits_and_exits_with_0(
    cascade: Cascade, sd1: Path
):
    with grpc.insecure_channel(cascade.text_encoder.address) as channel:
        encoded = text_encoder_pb2_grpc.TextEncoderServiceStub(channel).Encode(
            text_encoder_pb2.EncodeRequest(prompt="red"), timeout=20
        )
    job = stage_pb2.Job(
        conditioning=encoded.result.conditioning,
        random_state=stage_pb2.RandomState(seed=1),
        arguments=stage_pb2.Arguments(
            num_inference_steps=SLOW_STEPS, guidance_scale=1, scheduler="ddim"
        ),
    )
    flags = ("--max-batch-rows", "1", "--progress-interval-ms", "0")
    with (
        stage_process("generator", checkpoint=sd1, flags=flags) as stage,
        grpc.insecure_channel(stage.address) as channel,
    ):
        running = Generation(channel, job)
        running.wait_for("progress")
        waiting = Generation(channel, job)
        waiting.wait_for("queued")
        assert "result" not in running.events, "it must still be running when the signal comes"

        stage.process.send_signal(signal.SIGTERM)
        waiting.join()
        assert refusal(waiting.error).reason == "DRAINING"
        assert waiting.error.code() == grpc.StatusCode.UNAVAILABLE
        assert "result" not in running.events, "it must still be running when others are refused"
        late = Generation(channel, job)
        late.join()
        assert refusal(late.error).reason == "DRAINING"
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == NOT_SERVING
        assert describe(stage.address).load.draining

        running.join()
        assert running.error is None
        assert running.events[-1] == "result"
        assert running.events.count("progress") == SLOW_STEPS
        assert stage.process.wait(20) == 0


REFUSED = {
    "an address that others can reach": (("--bind", "0.0.0.0:0"), "--insecure"),
    "no address": (("--bind", "nonsense"), "HOST:PORT"),
    "no checkpoint": (("--checkpoint", "no-such-checkpoint"), "no-such-checkpoint"),
    "no thread": (("--num-threads", "0"), "--num-threads"),
    "no such device": (("--device", "abacus"), "abacus"),
    "no such type": (("--dtype", "float8"), "--dtype"),
}


def run_stage(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "carrara_services.decoder", *flags]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", REFUSED)
def test_an_operators_mistake_is_one_line_and_status_2(sd1: Path, name: str):
    flags, words = REFUSED[name]
    ended = run_stage("--checkpoint", str(sd1), "--bind", "127.0.0.1:0", *flags)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr


def test_a_port_in_use_is_one_line_and_status_2(cascade: Cascade):
    ended = run_stage("--bind", cascade.decoder.address)
    assert ended.returncode == 2
    assert "in use" in ended.stderr.lower()
    assert len(ended.stderr.splitlines()) == 1, ended.stderr


def test_every_flag_has_its_variable():
    ended = run_stage(CARRARA_BIND="0.0.0.0:0")
    assert ended.returncode == 2
    assert "--bind 0.0.0.0:0" in ended.stderr


UP = "import typer; from carrara_services.commands import up; typer.run(up)"


@pytest.mark.slow
def test_up_gives_a_command_the_addresses_and_ends_with_its_status(sd1: Path):
    script = """
import os, sys
from carrara.v1 import stage_pb2, stage_pb2_grpc
import grpc
for name in ("TEXT_ENCODER", "GENERATOR", "DECODER"):
    with grpc.insecure_channel(os.environ["CARRARA_" + name]) as channel:
        answer = stage_pb2_grpc.StageServiceStub(channel).Describe(stage_pb2.DescribeRequest())
        print(stage_pb2.Role.Name(answer.role), os.environ["CARRARA_" + name])
sys.exit(7)
"""
    command = [sys.executable, "-c", UP, "--checkpoint", str(sd1), "--num-threads", "1"]
    ended = subprocess.run(
        [*command, "--", sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 7, ended.stderr
    roles, addresses = zip(*(line.split() for line in ended.stdout.splitlines()), strict=True)
    assert roles == ("ROLE_TEXT_ENCODER", "ROLE_GENERATOR", "ROLE_DECODER")
    for address in addresses:
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.FutureTimeoutError):
            grpc.channel_ready_future(channel).result(timeout=0.5)


@pytest.mark.slow
def test_up_tells_which_stage_did_not_start_and_why(tmp_path: Path, sd1: Path):
    (sd1 / "vae").rename(tmp_path / "vae")
    try:
        command = [sys.executable, "-c", UP, "--checkpoint", str(sd1)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        (tmp_path / "vae").rename(sd1 / "vae")
    assert ended.returncode == 1
    assert "the decoder ended with status 2" in ended.stderr
    assert "vae" in ended.stderr
    assert "Traceback" not in ended.stderr
