"""Calls to one stage: its least busy replica, replay of what is safe, the caller's deadline.

Replay is this file's alone, so that attempts can be counted and bounded; gRPC by itself repeats
only calls that no stage has seen. A job that a replica suspends goes on at another, which is no
replay. It knows nothing of the chain that the stage stands in.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import random
import uuid
from collections.abc import Awaitable, Callable, Container, Iterator
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
from carrara.retry_budget import RetryBudget
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

# About 1.5 s in all, so that a dead only replica is reported long before any deadline.
MAX_ATTEMPTS = 5
FIRST_BACKOFF_SECONDS = 0.1
BACKOFF_FACTOR = 2.0

# A replica that is full and says when to come back is left alone until then, but at most so long: a
# place may come free earlier, as when callers go.
MAX_REST_SECONDS = 1.0
# After a refusal it is so long until one job more is begun than the replica had room for.
PROBE_INTERVAL_SECONDS = 5.0

# A stage that the network has swallowed is noticed after both. Stages permit a ping every 5 s;
# gRPC's own servers one in five minutes, and end the connection of whoever pings more often.
KEEPALIVE_SECONDS = 10.0
KEEPALIVE_TIMEOUT_SECONDS = 5.0
# For TCP and HTTP/2 together; with gRPC's default, 20 s, an address that swallows packets would
# hold up callers for as long.
HANDSHAKE_TIMEOUT_SECONDS = 2.0

ROLE_NAMES = {
    stage_pb2.ROLE_TEXT_ENCODER: "text-encoder",
    stage_pb2.ROLE_GENERATOR: "generator",
    stage_pb2.ROLE_DECODER: "decoder",
}

_SERVICES = {
    "text-encoder": text_encoder_pb2.DESCRIPTOR.services_by_name["TextEncoderService"],
    "generator": generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"],
    "decoder": decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"],
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


@dataclass
class _Replica:
    """One address, and how many jobs of this client its stage has room for.

    That is learned as TCP learns of a path's: the stage tells a limit at first; a job more than the
    limit that it takes raises it, and a refusal brings it down to what it has.

    Attributes:
        limit: How many jobs; infinite as long as nothing is known.
        jobs: How many it has taken and not ended.
        calls: How many calls to it are under way.
        probe_at: When one more than the limit may be tried, on the event loop's clock.
        full_by: What the last refusal said there was no room for: "jobs" or "seconds".
    """

    address: str
    channel: grpc.aio.Channel
    limit: float = math.inf
    jobs: int = 0
    calls: int = 0
    probe_at: float = -math.inf
    full_by: str | None = None
    _full_until: float = -math.inf

    @property
    def rest_seconds(self) -> float:
        """How long it is left alone, as it has said to be full; 0 or less if it is not."""
        return self._full_until - asyncio.get_running_loop().time()

    def take(self) -> None:
        """Says that it has taken a job."""
        self.jobs += 1
        self.limit = max(self.limit, self.jobs)

    def end(self) -> None:
        """Says that a job that it had taken has come to its end."""
        self.jobs -= 1

    def note(self, failure: CarraraError) -> None:
        """Remembers a refusal that everybody would get now."""
        rest = failure.retry_after_seconds
        # Behind a name there may be others, which have room.
        if rest and failure.limit in ("jobs", "seconds") and not _is_name(self.address):
            now = asyncio.get_running_loop().time()
            self._full_until = now + min(rest, MAX_REST_SECONDS)
            self.probe_at = now + PROBE_INTERVAL_SECONDS
            self.full_by = failure.limit
            self.limit = max(self.jobs, 1)


class _GoOn(Exception):
    """A call that another one follows at once, as nothing has failed."""


class Stage:
    """One stage of a cascade, behind one or several addresses.

    Args:
        address: `host:port`, `unix:/path` or `dns:///name:port`; replicas are separated by commas.
        role: What it is expected to be: "text-encoder", "generator" or "decoder".
        max_attempts: Calls for one piece of work, replays included; at least 1. None is
            `MAX_ATTEMPTS`, and at least one more than there are replicas.

    Attributes:
        description: What the stage tells about itself; empty before `connect`.
        resumes_jobs: Whether jobs may say that they are resumable: each replica can take them up,
            and there may be another one.
        shows_previews: Whether jobs may ask for previews: each replica knows the word, and can show
            them.
    """

    def __init__(self, address: str, *, role: str, max_attempts: int | None = None) -> None:
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
            _Replica(
                part,
                grpc.aio.insecure_channel(
                    part, options=_channel_options(health_of=_SERVICES[role].full_name)
                ),
            )
            for part in addresses
        ]
        self._max_attempts = max_attempts or max(MAX_ATTEMPTS, len(self._replicas) + 1)
        self._turn = itertools.count()
        self._budget = RetryBudget()
        self._expected = 0  # jobs that others work for yet
        self.resumes_jobs = self.shows_previews = False

    def __str__(self) -> str:
        return f"{self.role} {self.address}"

    async def connect(self) -> None:
        """Waits up to ten seconds until the stage serves, and asks what it is.

        One replica is enough: each job names the fingerprint, so that one which comes later and has
        other weights refuses it.

        Raises:
            CarraraError: None answers or serves, what answers is no stage, or replicas differ.
        """
        await self._ask(self._serving_description)

    async def describe(self) -> None:
        """Asks what the stage is, as `connect` does, but of one that does not serve too."""
        await self._ask(self._description)

    def refuse_if_full(self, request: Request) -> None:
        """Refuses what all replicas would refuse, before others work for it in vain.

        Raises:
            ResourceExhaustedError: Each has just said that it is full, and when to come back.
        """
        first = min(self._replicas, key=lambda replica: replica.rest_seconds)
        left = first.rest_seconds
        if left > 0:
            raise self._failure(
                ResourceExhaustedError,
                f"full, as it has just said; not asked again for {left:.2f} s",
                request,
                reason="QUEUE_FULL",
                limit=first.full_by,
                retry_after_seconds=left,
            )

    @contextlib.contextmanager
    def expecting(self, request: Request) -> Iterator[None]:
        """While others work for a job that is then to come here.

        Raises:
            ResourceExhaustedError: There is no room for it beside this client's others.
        """
        self.refuse_if_full(request)
        limit = sum(replica.limit for replica in self._replicas)
        now = asyncio.get_running_loop().time()
        if any(replica.probe_at <= now for replica in self._replicas):
            limit += 1
        begun = self._expected + sum(replica.calls for replica in self._replicas)
        if begun >= limit:
            raise self._failure(
                ResourceExhaustedError,
                f"full: there is no room beside the {begun} jobs of this client",
                request,
                reason="QUEUE_FULL",
                limit="jobs",
                retry_after_seconds=MAX_REST_SECONDS,
            )
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1

    async def encode(
        self,
        message: text_encoder_pb2.EncodeRequest,
        *,
        request: Request,
        on_attempt: Callable[[], None] = lambda: None,
    ) -> stage_pb2.Result:
        """Has a text encoder encode one prompt.

        Args:
            on_attempt: Called before each call to a replica, the first and each replay.
        """

        async def attempt(replica: _Replica, options: dict[str, Any]) -> stage_pb2.Result:
            stub = text_encoder_pb2_grpc.TextEncoderServiceStub(replica.channel)  # type: ignore[no-untyped-call]
            response: text_encoder_pb2.EncodeResponse = await stub.Encode(message, **options)
            return response.result

        return await self._call(attempt, request=request, on_attempt=on_attempt)

    async def run(
        self,
        job: stage_pb2.Job,
        *,
        request: Request,
        on_event: Callable[[stage_pb2.Event], None],
        on_attempt: Callable[[], None] = lambda: None,
    ) -> stage_pb2.Result:
        """Has a generator or decoder do one image's work.

        Args:
            on_event: Called with each event but the result. After a replay, steps start again.
            on_attempt: Called before each call to a replica, the first and each replay.
        """
        step: int | None = None
        state: stage_pb2.JobState | None = None

        async def attempt(replica: _Replica, options: dict[str, Any]) -> stage_pb2.Result:
            nonlocal step, state
            step = None if state is None else state.step
            sent = job
            if state is not None:
                sent = stage_pb2.Job(resume=state)
                sent.MergeFrom(job)
            if self.role == "generator":
                generator = generator_pb2_grpc.GeneratorServiceStub(replica.channel)  # type: ignore[no-untyped-call]
                stream = generator.Generate(generator_pb2.GenerateRequest(job=sent), **options)
            else:
                decoder = decoder_pb2_grpc.DecoderServiceStub(replica.channel)  # type: ignore[no-untyped-call]
                stream = decoder.Decode(decoder_pb2.DecodeRequest(job=sent), **options)
            result: stage_pb2.Result | None = None
            suspended: stage_pb2.JobState | None = None
            taken = False
            try:
                async for response in stream:
                    if not taken:
                        taken = True
                        replica.take()
                    match response.event.WhichOneof("event"):
                        case "result":
                            result = response.event.result
                        case "progress":
                            step = response.event.progress.step
                            on_event(response.event)
                        case "queued" | "preview":
                            on_event(response.event)
                        case "suspended":
                            suspended = response.event.suspended
                        # None: an event of a newer stage, which is not for this client
            except grpc.aio.AioRpcError as error:
                if state is None or not _is_refused_state(error):
                    raise
                state = None  # this replica cannot go on from it: from the beginning
                raise _GoOn from error
            finally:
                stream.cancel()
                if taken:
                    replica.end()
            if suspended is not None:
                state = suspended
                raise _GoOn
            if result is None:
                raise self._failure(
                    InternalStageError, "the stage ended the job without a result", request
                )
            return result

        try:
            return await self._call(attempt, request=request, on_attempt=on_attempt)
        except DeadlineError as error:
            if error.step is None and step is not None:
                error.step = step
                error.args = (f"{error} after step {step}",)
            raise

    async def close(self) -> None:
        """Ends all connections; calls that still run are cancelled."""
        await asyncio.gather(*(replica.channel.close() for replica in self._replicas))

    async def _ask(
        self, describe: Callable[[_Replica], Awaitable[stage_pb2.DescribeResponse]]
    ) -> None:
        """Asks all replicas; the first answer is kept, the others have a second more to differ."""
        asked = {asyncio.ensure_future(describe(replica)) for replica in self._replicas}
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
            await asyncio.gather(*asked, return_exceptions=True)
        failures = [failure for task in done if (failure := task.exception())]
        answers = [task.result() for task in done if not task.exception()]
        if not answers:
            raise failures[0]
        self.description = answers[0]
        for replica in self._replicas:
            if not _is_name(replica.address):
                replica.limit = _room(self.description.load)
        self.resumes_jobs = self._has_several and all(answer.resumable for answer in answers)
        self.shows_previews = all(answer.previews for answer in answers)
        for other in answers[1:]:
            if other.fingerprint != self.description.fingerprint:
                raise ContractError(
                    f"{self}: the replicas have different weights "
                    f"({self.description.fingerprint[:12]} and {other.fingerprint[:12]})",
                    role=self.role,
                    address=self.address,
                    reason="FINGERPRINT",
                )

    async def _description(self, replica: _Replica) -> stage_pb2.DescribeResponse:
        # On a channel of its own, which asks for no health, so that who drains answers too.
        async with grpc.aio.insecure_channel(
            replica.address, options=_channel_options()
        ) as channel:
            stub = stage_pb2_grpc.StageServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                answer: stage_pb2.DescribeResponse = await stub.Describe(
                    stage_pb2.DescribeRequest(),
                    timeout=CONNECT_TIMEOUT_SECONDS,
                    wait_for_ready=True,
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise self._unavailable(replica, "no stage answered within") from error
                raise from_rpc_error(error, role=self.role, address=replica.address) from error
        return answer

    async def _serving_description(self, replica: _Replica) -> stage_pb2.DescribeResponse:
        begin = asyncio.get_running_loop().time()
        replica.channel.get_state(try_to_connect=True)
        answer = await self._description(replica)
        if ROLE_NAMES.get(answer.role) != self.role:
            return answer  # it has no health in this role; the chain says what it is
        try:
            async with asyncio.timeout_at(begin + CONNECT_TIMEOUT_SECONDS):
                await replica.channel.channel_ready()
        except TimeoutError:
            raise self._unavailable(
                replica, "the stage answers, but was not ready to serve (NOT_SERVING) within"
            ) from None
        return answer

    def _unavailable(self, replica: _Replica, what: str) -> StageUnavailableError:
        return StageUnavailableError(
            f"{self.role} {replica.address}: {what} {CONNECT_TIMEOUT_SECONDS:g} s",
            role=self.role,
            address=replica.address,
        )

    async def _call(
        self,
        attempt: Callable[[_Replica, dict[str, Any]], Awaitable[T]],
        *,
        request: Request,
        on_attempt: Callable[[], None],
    ) -> T:
        self._budget.deposit()
        asked: set[str] = set()
        backoff = FIRST_BACKOFF_SECONDS
        attempts_left = self._max_attempts
        while True:
            remaining = request.remaining_seconds
            if remaining <= 0:
                raise self._failure(
                    DeadlineError,
                    "the deadline had passed before the stage was asked",
                    request,
                    reason="DEADLINE",
                )
            replica = self._next_replica(asked)
            asked.add(replica.address)
            options = {
                "timeout": remaining,
                "metadata": (("x-request-id", request.request_id),),
            }
            on_attempt()
            replica.calls += 1
            try:
                return await attempt(replica, options)
            except _GoOn:
                continue
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(
                    error, role=self.role, address=replica.address, request_id=request.request_id
                )
                replica.note(failure)
                attempts_left -= 1
                pause = backoff * random.uniform(0.8, 1.2)
                if (
                    not attempts_left
                    or not self._another_attempt_can_help(failure)
                    or pause >= request.remaining_seconds
                ):
                    raise failure from error
                # A replica that hands a job back is not failing, and soon asked no more.
                if failure.reason != "DRAINING" and not self._budget.withdraw():
                    failure.args = (
                        f"{failure}; not tried again, "
                        "because too many calls to this stage are failing",
                    )
                    raise failure from error
                # Still as a call to it: one that fails at once would always have the fewest.
                await asyncio.sleep(pause)
                backoff *= BACKOFF_FACTOR
            finally:
                replica.calls -= 1

    def _failure(
        self, kind: type[CarraraError], what: str, request: Request, **details: Any
    ) -> CarraraError:
        """What this client has found itself, in the form of what stages tell."""
        return kind(
            f"{self}: {what}",
            role=self.role,
            address=self.address,
            request_id=request.request_id,
            **details,
        )

    @property
    def _has_several(self) -> bool:
        """Whether there is, or may be, another replica to ask."""
        return len(self._replicas) > 1 or _is_name(self.address)

    def _another_attempt_can_help(self, failure: CarraraError) -> bool:
        if isinstance(failure, StageUnavailableError | StageCancelledError):
            return True
        # Not a message that is too large, which is the same everywhere.
        full = isinstance(failure, ResourceExhaustedError) and failure.reason == "QUEUE_FULL"
        return self._has_several and (full or failure.reason == "FINGERPRINT")

    def _next_replica(self, asked: Container[str]) -> _Replica:
        """Of those within reach the one with the fewest calls of this client; of equals, in turn.

        If possible not one that was asked before, and then not one that is known to be full.
        """
        turn = next(self._turn) % len(self._replicas)
        connectivity = grpc.ChannelConnectivity

        def rank(replica: _Replica) -> tuple[bool, bool, bool, bool, int]:
            state = replica.channel.get_state(try_to_connect=True)
            gone = state in (connectivity.TRANSIENT_FAILURE, connectivity.SHUTDOWN)
            unready = state is not connectivity.READY
            full = replica.rest_seconds > 0
            return gone, replica.address in asked, full, unready, replica.calls

        return min(self._replicas[turn:] + self._replicas[:turn], key=rank)


def _room(load: stage_pb2.Load) -> float:
    """How many jobs a stage has room for; infinite where it does not tell.

    Guessed low, at two rows a job, as with guidance, where its line is long enough to keep the
    batch full even so: whoever is refused here is refused at once, and by the stage only after
    others have worked.
    """
    if not load.max_queue_jobs:
        return math.inf
    return max(load.max_queue_jobs + load.max_batch_rows // 2, load.max_batch_rows)


def _is_name(address: str) -> bool:
    """Whether it is looked up, and several replicas may be behind it."""
    return address.startswith("dns:")


def _is_refused_state(error: grpc.aio.AioRpcError) -> bool:
    return from_rpc_error(error, role="", address="").reason == "STATE"


def _channel_options(*, health_of: str | None = None) -> list[tuple[str, Any]]:
    """Makes a channel's options.

    Args:
        health_of: Calls go only to replicas whose health says that this service is SERVING, and to
            those that know nothing of health; None asks for no health.
    """
    service_config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if health_of is not None:
        service_config["healthCheckConfig"] = {"serviceName": health_of}
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # gRPC repeats a call that no stage has seen only if the request fits in here; its default,
        # 256 KiB, is below one conditioning.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.keepalive_time_ms", round(1000 * KEEPALIVE_SECONDS)),
        ("grpc.keepalive_timeout_ms", round(1000 * KEEPALIVE_TIMEOUT_SECONDS)),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),  # no limit: a job may be silent for long
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", round(1000 * HANDSHAKE_TIMEOUT_SECONDS)),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # A name is looked up again when a connection ends, by default at most every 30 s.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ]
