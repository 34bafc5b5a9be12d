"""Stages on real gRPC servers inside a test's own event loop, and what their errors say."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from carrara.v1 import (
    decoder_pb2_grpc,
    generator_pb2,
    generator_pb2_grpc,
    stage_pb2,
    stage_pb2_grpc,
    text_encoder_pb2,
    text_encoder_pb2_grpc,
)
from carrara_services.decoder.__main__ import open_stage as open_decoder
from carrara_services.generator.__main__ import open_stage as open_generator
from carrara_services.serving.app import StageServer
from carrara_services.serving.settings import read_settings
from carrara_services.text_encoder.__main__ import open_stage as open_text_encoder

OPENERS = {
    "text-encoder": open_text_encoder,
    "generator": open_generator,
    "decoder": open_decoder,
}
STUBS = {
    "text-encoder": text_encoder_pb2_grpc.TextEncoderServiceStub,
    "generator": generator_pb2_grpc.GeneratorServiceStub,
    "decoder": decoder_pb2_grpc.DecoderServiceStub,
}
DETAILS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.RequestInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.RetryInfo,
)
# Larger than what a stage takes, so that it is the stage that refuses.
CHANNEL_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


@dataclass
class Served:
    """A stage that answers; `stub` is that of its own service."""

    server: StageServer
    channel: grpc.aio.Channel
    stub: Any

    async def describe(self) -> stage_pb2.DescribeResponse:
        stub = stage_pb2_grpc.StageServiceStub(self.channel)
        return await stub.Describe(stage_pb2.DescribeRequest())


@asynccontextmanager
async def served(role: str, checkpoint: Path, **settings: object) -> AsyncIterator[Served]:
    """Serves one stage of a checkpoint on a free port; it tells of each step."""
    given = {
        "checkpoint": str(checkpoint),
        "bind": "127.0.0.1:0",
        "num_threads": 1,
        "progress_interval_ms": 0,
        **settings,
    }
    server = StageServer(role, read_settings(given))
    try:
        await server.start(OPENERS[role])
        async with grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            yield Served(server, channel, STUBS[role](channel))
    finally:
        await server.close()


def read(stage: Served, name: str, **labels: str) -> float:
    """One value of its metrics, 0 for a series that has not begun."""
    return stage.server.metrics.registry.get_sample_value(name, labels) or 0.0


@dataclass
class Refusal:
    """What a failed call told its caller."""

    code: grpc.StatusCode
    message: str
    details: dict[str, Any]

    @property
    def reason(self) -> str:
        return self.details["ErrorInfo"].reason

    @property
    def field(self) -> str:
        [violation] = self.details["BadRequest"].field_violations
        return violation.field


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """Reads the details of an error; checks that message and status say the same twice."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    details = {}
    for packed in status.details:
        for kind in DETAILS:
            if packed.Is(kind.DESCRIPTOR):
                details[kind.DESCRIPTOR.name] = kind()
                packed.Unpack(details[kind.DESCRIPTOR.name])
    if details:
        assert (status.code, status.message) == (error.code().value[0], error.details())
        assert details["ErrorInfo"].domain == "carrara"
        assert details["RequestInfo"].request_id
    return Refusal(error.code(), error.details() or "", details)


async def encode(
    text_encoder: Served, prompt: str, negative_prompt: str | None = None, **more: Any
):
    """Encodes a prompt, with guidance if there is a negative one; gives the result."""
    request = text_encoder_pb2.EncodeRequest(prompt=prompt, **more)
    if negative_prompt is not None:
        request.guidance, request.negative_prompt = True, negative_prompt
    return (await text_encoder.stub.Encode(request)).result


async def generate(generator: Served, job: stage_pb2.Job, **call: Any) -> stage_pb2.Result:
    """Runs a job to its end; gives the result."""
    return (await events(generator.stub.Generate(generator_pb2.GenerateRequest(job=job), **call)))[
        -1
    ]


async def events(call: Any) -> list[Any]:
    """All events of a stream, unpacked."""
    unpacked = []
    async for response in call:
        name = response.event.WhichOneof("event")
        unpacked.append(getattr(response.event, name))
    return unpacked


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch, kind: type, method: str) -> Iterator[threading.Event]:
    """Lets every call of a method wait; gives an event that tells of the first.

    Leave it before the stage is closed, which waits for its worker.
    """
    called, goes_on = threading.Event(), threading.Event()
    real = getattr(kind, method)

    def waiting(self, *arguments, **more):
        called.set()
        goes_on.wait()
        return real(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(kind, method, waiting)
        try:
            yield called
        finally:
            goes_on.set()


async def was_called(called: threading.Event) -> None:
    assert await asyncio.to_thread(called.wait, 30), "the worker must have come to a stand"
