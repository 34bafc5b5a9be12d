"""Calls to one stage: its replicas in turn, replay of what is safe, the caller's deadline.

It knows nothing of the chain that the stage stands in.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from carrara.exceptions import (
    CarraraError,
    ContractError,
    DeadlineError,
    InternalStageError,
    InvalidArgumentError,
    ResourceExhaustedError,
    StageCancelledError,
    StageUnavailableError,
    from_rpc_error,
)
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

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
CONNECT_TIMEOUT_SECONDS = 10.0
OTHER_REPLICAS_WAIT_SECONDS = 1.0  # once one has answered

# Replays beside gRPC's own, which give up once a stream has begun: about 1.5 s in all, so that a
# dead only replica is reported long before any deadline.
MAX_ATTEMPTS = 4
FIRST_BACKOFF_SECONDS = 0.1
BACKOFF_FACTOR = 3.0

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # gRPC replays no request larger than this; its default, 256 KiB, is below one conditioning.
    ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

ROLE_NAMES = {
    stage_pb2.ROLE_TEXT_ENCODER: "text-encoder",
    stage_pb2.ROLE_GENERATOR: "generator",
    stage_pb2.ROLE_DECODER: "decoder",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What all calls of one `generate` share.

    Attributes:
        deadline: On the running event loop's clock.
    """

    request_id: str
    deadline: float

    @classmethod
    def lasting(cls, timeout_seconds: float) -> Request:
        """Begins a request now."""
        return cls(uuid.uuid4().hex, asyncio.get_running_loop().time() + timeout_seconds)

    @property
    def remaining_seconds(self) -> float:
        """Until the deadline; negative once it has passed."""
        return self.deadline - asyncio.get_running_loop().time()


@dataclass(frozen=True)
class _Replica:
    address: str
    channel: grpc.aio.Channel


class Stage:
    """One stage of a cascade, behind one or several addresses.

    Args:
        address: `host:port`, `unix:/path` or `dns:///name:port`; replicas are separated by commas.
        role: What it is expected to be: "text-encoder", "generator" or "decoder".

    Attributes:
        description: What the stage tells about itself; empty before `connect`.
    """

    def __init__(self, address: str, *, role: str) -> None:
        self.address, self.role = address, role
        self.description = stage_pb2.DescribeResponse()
        addresses = [part.strip() for part in address.split(",")]
        for part in addresses:
            if ":" not in part:
                raise InvalidArgumentError(
                    f"{role} address {part!r} is not allowed; allowed: host:port, unix:/path or "
                    "dns:///name:port",
                    role=role,
                    address=address,
                )
        self._replicas = [
            _Replica(part, grpc.aio.insecure_channel(part, options=_CHANNEL_OPTIONS))
            for part in addresses
        ]
        self._turn = itertools.count()

    def __str__(self) -> str:
        return f"{self.role} {self.address}"

    async def connect(self) -> None:
        """Waits up to ten seconds for the stage and asks what it is.

        One replica that answers is enough: each job names the fingerprint, so that one which comes
        later and has other weights refuses it.

        Raises:
            CarraraError: None answers, what answers is no stage, or replicas differ.
        """
        asked = {asyncio.ensure_future(self._describe(replica)) for replica in self._replicas}
        try:
            done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            while waiting and all(task.exception() for task in done):
                more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            if waiting:
                more, waiting = await asyncio.wait(waiting, timeout=OTHER_REPLICAS_WAIT_SECONDS)
                done |= more
        finally:
            for task in asked:
                task.cancel()
        failures = [failure for task in done if (failure := task.exception())]
        answers = [task.result() for task in done if not task.exception()]
        if not answers:
            raise failures[0]
        self.description = answers[0]
        for other in answers[1:]:
            if other.fingerprint != self.description.fingerprint:
                raise ContractError(
                    f"{self}: the replicas have different weights "
                    f"({self.description.fingerprint[:12]} and {other.fingerprint[:12]})",
                    role=self.role,
                    address=self.address,
                    reason="FINGERPRINT",
                )

    async def encode(
        self, message: text_encoder_pb2.EncodeRequest, *, request: Request
    ) -> stage_pb2.Result:
        """Has a text encoder encode one prompt."""

        async def attempt(channel: grpc.aio.Channel, options: dict[str, Any]) -> stage_pb2.Result:
            stub = text_encoder_pb2_grpc.TextEncoderServiceStub(channel)  # type: ignore[no-untyped-call]
            response: text_encoder_pb2.EncodeResponse = await stub.Encode(message, **options)
            return response.result

        return await self._call(attempt, request=request)

    async def run(
        self,
        job: stage_pb2.Job,
        *,
        request: Request,
        on_event: Callable[[stage_pb2.Event], None],
    ) -> stage_pb2.Result:
        """Has a generator or decoder do one image's work.

        Args:
            on_event: Called with each event but the result. After a replay, steps start again.
        """
        step: int | None = None

        async def attempt(channel: grpc.aio.Channel, options: dict[str, Any]) -> stage_pb2.Result:
            nonlocal step
            step = None
            if self.role == "generator":
                generator = generator_pb2_grpc.GeneratorServiceStub(channel)  # type: ignore[no-untyped-call]
                stream = generator.Generate(generator_pb2.GenerateRequest(job=job), **options)
            else:
                decoder = decoder_pb2_grpc.DecoderServiceStub(channel)  # type: ignore[no-untyped-call]
                stream = decoder.Decode(decoder_pb2.DecodeRequest(job=job), **options)
            result: stage_pb2.Result | None = None
            try:
                async for response in stream:
                    match response.event.WhichOneof("event"):
                        case "result":
                            result = response.event.result
                        case "progress":
                            step = response.event.progress.step
                            on_event(response.event)
                        case "queued" | "preview":
                            on_event(response.event)
                        # None: an event of a newer stage, which is not for this client
            finally:
                stream.cancel()
            if result is None:
                raise InternalStageError(
                    f"{self}: the stage ended the job without a result",
                    role=self.role,
                    address=self.address,
                    request_id=request.request_id,
                )
            return result

        try:
            return await self._call(attempt, request=request)
        except DeadlineError as error:
            if error.step is None and step is not None:
                error.step = step
                error.args = (f"{error} after step {step}",)
            raise

    async def close(self) -> None:
        """Ends all connections; calls that still run are cancelled."""
        await asyncio.gather(*(replica.channel.close() for replica in self._replicas))

    async def _describe(self, replica: _Replica) -> stage_pb2.DescribeResponse:
        stub = stage_pb2_grpc.StageServiceStub(replica.channel)  # type: ignore[no-untyped-call]
        try:
            answer: stage_pb2.DescribeResponse = await stub.Describe(
                stage_pb2.DescribeRequest(), timeout=CONNECT_TIMEOUT_SECONDS, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise StageUnavailableError(
                    f"{self.role} {replica.address}: no stage answered within "
                    f"{CONNECT_TIMEOUT_SECONDS:g} s",
                    role=self.role,
                    address=replica.address,
                ) from error
            raise from_rpc_error(error, role=self.role, address=replica.address) from error
        return answer

    async def _call(
        self,
        attempt: Callable[[grpc.aio.Channel, dict[str, Any]], Awaitable[T]],
        *,
        request: Request,
    ) -> T:
        backoff = FIRST_BACKOFF_SECONDS
        for attempts_left in reversed(range(max(MAX_ATTEMPTS, len(self._replicas) + 1))):
            remaining = request.remaining_seconds
            if remaining <= 0:
                raise DeadlineError(
                    f"{self}: the deadline had passed before the stage was asked",
                    role=self.role,
                    address=self.address,
                    request_id=request.request_id,
                    reason="DEADLINE",
                )
            replica = self._next_replica()
            options = {
                "timeout": remaining,
                "metadata": (("x-request-id", request.request_id),),
            }
            try:
                return await attempt(replica.channel, options)
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(
                    error, role=self.role, address=replica.address, request_id=request.request_id
                )
                pause = backoff * random.uniform(0.8, 1.2)
                if (
                    not attempts_left
                    or not self._another_attempt_can_help(failure)
                    or pause >= request.remaining_seconds
                ):
                    raise failure from error
            await asyncio.sleep(pause)
            backoff *= BACKOFF_FACTOR
        raise AssertionError("the last attempt returns or raises")

    def _another_attempt_can_help(self, failure: CarraraError) -> bool:
        if isinstance(failure, StageUnavailableError | StageCancelledError):
            return True
        elsewhere = len(self._replicas) > 1 or self.address.startswith("dns:")
        # Not a message that is too large, which is the same everywhere.
        full = isinstance(failure, ResourceExhaustedError) and failure.reason == "QUEUE_FULL"
        return elsewhere and (full or failure.reason == "FINGERPRINT")

    def _next_replica(self) -> _Replica:
        """The next in turn, passing over those that are known to be out of reach."""
        turn = next(self._turn)
        order = [
            self._replicas[(turn + offset) % len(self._replicas)]
            for offset in range(len(self._replicas))
        ]
        for replica in order:
            state = replica.channel.get_state(try_to_connect=True)
            if state not in (
                grpc.ChannelConnectivity.TRANSIENT_FAILURE,
                grpc.ChannelConnectivity.SHUTDOWN,
            ):
                return replica
        return order[0]
