"""What a stage's health says: of a worker that hangs, and of a stage that was told to end."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carrara.v1 import text_encoder_pb2, text_encoder_pb2_grpc
from carrara_models.text_encoders.clip import ClipTextEncoder
from integration.in_process import Served, encode, served
from integration.processes import stage_process
from tiny_checkpoints import build_sd1

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


async def watch(stage: Served) -> AsyncIterator[int]:
    call = health_pb2_grpc.HealthStub(stage.channel).Watch(health_pb2.HealthCheckRequest())
    async for answer in call:
        yield answer.status


async def test_a_worker_that_hangs_is_not_serving_within_5_s_and_serves_again_once_it_goes_on(
    sd1: Path, monkeypatch: pytest.MonkeyPatch
):
    hangs, goes_on = threading.Event(), threading.Event()

    async with served("text-encoder", sd1) as stage:
        whole = ClipTextEncoder.encode

        def hanging(self, pieces):
            hangs.set()
            goes_on.wait()
            return whole(self, pieces)

        statuses = watch(stage)
        assert await anext(statuses) == SERVING
        monkeypatch.setattr(ClipTextEncoder, "encode", hanging)
        call = asyncio.ensure_future(encode(stage, "a red circle"))
        await asyncio.to_thread(hangs.wait, 30)
        assert hangs.is_set(), "the worker must have come to a stand"
        stood = time.monotonic()
        assert await anext(statuses) == NOT_SERVING
        assert time.monotonic() - stood < 5
        goes_on.set()
        assert await anext(statuses) == SERVING
        assert (await call).conditioning.tensors


def test_told_to_end_a_stage_is_not_serving_at_once_and_answers_until_the_pause_is_over(sd1: Path):
    pause = 6.0
    flags = ("--drain-pause-seconds", str(pause))
    with (
        stage_process("text-encoder", checkpoint=sd1, flags=flags) as stage,
        grpc.insecure_channel(stage.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        statuses = iter(health.Watch(health_pb2.HealthCheckRequest(), timeout=60))
        assert next(statuses).status == SERVING
        told = time.monotonic()
        stage.process.send_signal(signal.SIGTERM)
        assert next(statuses).status == NOT_SERVING
        stub = text_encoder_pb2_grpc.TextEncoderServiceStub(channel)
        answer = stub.Encode(text_encoder_pb2.EncodeRequest(prompt="red"), timeout=20)
        assert answer.result.conditioning.tensors
        assert stage.process.poll() is None
        assert stage.process.wait(30) == 0
        assert time.monotonic() - told >= pause


def test_a_connection_ends_at_its_age_and_a_job_on_it_does_not(sd1: Path):
    flags = ("--max-connection-age-seconds", "1")
    with (
        stage_process("text-encoder", checkpoint=sd1, flags=flags) as stage,
        grpc.insecure_channel(stage.address) as channel,
    ):
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append, try_to_connect=True)
        health = health_pb2_grpc.HealthStub(channel)
        call = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(call).status == SERVING
        end = time.monotonic() + 30
        while grpc.ChannelConnectivity.IDLE not in states[1:]:
            assert time.monotonic() < end, f"the connection was kept: {states}"
            time.sleep(0.1)
        assert call.is_active()
        call.cancel()
        stub = text_encoder_pb2_grpc.TextEncoderServiceStub(channel)
        request = text_encoder_pb2.EncodeRequest(prompt="red")
        assert stub.Encode(request, timeout=20).result.HasField("conditioning")


async def test_a_draining_stage_says_so_only_after_the_pause(sd1: Path):
    async with served("decoder", sd1, drain_pause_seconds=2) as stage:
        ending = asyncio.ensure_future(stage.server.drain())
        await asyncio.sleep(0.5)
        assert not (await stage.describe()).load.draining
        await ending
