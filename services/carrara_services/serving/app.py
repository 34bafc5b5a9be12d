"""The server of one stage: bound, warmed up, healthy, drained. The same for all three roles."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from carrara.v1 import stage_pb2, stage_pb2_grpc
from carrara_services.admission.line import WaitingLine
from carrara_services.serving import describe, limits, validation
from carrara_services.serving.addresses import check_bind, check_metrics_bind, refuse_taken
from carrara_services.serving.interceptors import Calls
from carrara_services.serving.metrics import Metrics, MetricsServer
from carrara_services.serving.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

_STAGE_SERVICE = stage_pb2.DESCRIPTOR.services_by_name["StageService"].full_name
_HEALTH_INTERVAL_SECONDS = 1.0
_LAST_BYTES_SECONDS = 1.0  # for what a finished call still has on its way to the caller


@dataclass(frozen=True)
class Stage:
    """What a server needs to know of its stage.

    Attributes:
        role: text-encoder, generator or decoder.
        service: Full name of the stage's own service.
        register: Adds the stage's servicer to a server.
        part: What it serves; Describe tells of it.
        runtime: Where and how the part computes.
        warm_up: Runs the network once on the path that requests take.
        line: Where its work waits; health follows it.
        rows: Tells how many rows the network's batch has now.
        max_batch_rows: Tells how many it may have.
        hand_back: Refuses what waits when draining begins, and suspends of what runs what it can;
            the rest is finished.
        close: Ends the worker's thread; blocks until it has.
        watch: Adds what only this role has to the metrics; called after the warm-up, which is
            nobody's work.
        resumable: Whether its jobs may be suspended, and go on elsewhere.
    """

    role: str
    service: str
    register: Callable[[grpc.aio.Server], None]
    part: describe.DescribedPart
    runtime: describe.Runtime
    warm_up: Callable[[], Awaitable[None]]
    line: WaitingLine
    rows: Callable[[], int]
    max_batch_rows: Callable[[], int]
    hand_back: Callable[[], None]
    close: Callable[[], None]
    watch: Callable[[Metrics], None] = lambda metrics: None
    resumable: bool = False


class _StageServicer(stage_pb2_grpc.StageServiceServicer):
    def __init__(self, stage: Stage, calls: Calls, *, checkpoint: str) -> None:
        self._stage, self._calls, self._checkpoint = stage, calls, checkpoint

    async def Describe(
        self, request: stage_pb2.DescribeRequest, context: Any
    ) -> stage_pb2.DescribeResponse:
        validation.refuse_unknown_fields(request)
        stage = self._stage
        load = stage_pb2.Load(
            draining=self._calls.draining,
            jobs_queued=stage.line.queued,
            jobs_running=stage.line.running,
            rows=stage.rows(),
            max_batch_rows=stage.max_batch_rows(),
            max_queue_jobs=stage.line.max_jobs,
            queue_seconds=stage.line.backlog_seconds or 0.0,
            max_queue_seconds=stage.line.max_seconds,
        )
        return describe.describe(
            stage.part,
            role=stage.role,
            checkpoint=self._checkpoint,
            runtime=stage.runtime,
            load=load,
            resumable=stage.resumable,
        )


class StageServer:
    """A stage on an address. Make it inside the event loop that it serves in.

    The addresses are taken first and the stage opened then, so that a bad address costs no loading.
    No call is answered before the warm-up; the metrics are, so that a stage that loads for minutes
    is seen as not serving and not as lost.

    Attributes:
        address: Where it listens; a port of 0 has been replaced by the real one.
        metrics: Of this stage alone.
        metrics_address: Where Prometheus finds them; None where they are not served.
    """

    def __init__(self, role: str, settings: Settings) -> None:
        """Takes the addresses.

        Raises:
            SettingsError: One is not usable, or not allowed without --insecure.
        """
        check_bind(settings.bind, insecure=settings.insecure)
        if settings.metrics_bind is not None:
            check_metrics_bind(settings.metrics_bind, insecure=settings.insecure)
        self._settings = settings
        self.metrics = Metrics()
        self._calls = Calls(role=role, metrics=self.metrics)
        self._server = grpc.aio.server(
            interceptors=(self._calls,),
            maximum_concurrent_rpcs=limits.MAX_CONCURRENT_CALLS,
            options=[
                ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
                ("grpc.max_metadata_size", limits.MAX_METADATA_BYTES),
                ("grpc.so_reuseport", 0),  # two stages on one port would share its calls in silence
                ("grpc.max_connection_age_ms", round(settings.max_connection_age_seconds * 1e3)),
                ("grpc.keepalive_time_ms", round(limits.KEEPALIVE_SECONDS * 1e3)),
                ("grpc.keepalive_timeout_ms", round(limits.KEEPALIVE_TIMEOUT_SECONDS * 1e3)),
                ("grpc.http2.max_pings_without_data", 0),  # 0 is no limit: a job may be silent
                (
                    "grpc.http2.min_ping_interval_without_data_ms",
                    round(limits.MIN_PING_INTERVAL_SECONDS * 1e3),
                ),
            ],
        )
        self.address = self._bind(settings.bind)
        self._health = health.aio.HealthServicer()
        self._stage: Stage | None = None
        self._watch: asyncio.Task[None] | None = None
        self.metrics_address: str | None = None
        self._metrics_server: MetricsServer | None = None
        if settings.metrics_bind is not None:
            self._metrics_server = MetricsServer(self.metrics, bind=settings.metrics_bind)
            self.metrics_address = self._metrics_server.address

    def _bind(self, bind: str) -> str:
        if not bind.startswith("unix:"):
            refuse_taken(bind)
        try:
            port = self._server.add_insecure_port(bind)
        except RuntimeError as error:
            raise SettingsError(f"--bind {bind}: {error}") from error
        if not port or bind.startswith("unix:"):
            return bind
        return f"{bind.rpartition(':')[0]}:{port}"

    async def start(self, open_stage: Callable[[Settings], Stage]) -> None:
        """Opens the stage, warms it up and serves."""
        checkpoint = self._settings.checkpoint
        stage = self._stage = open_stage(self._settings)
        self.metrics.tell_stage(
            stage.part, role=stage.role, checkpoint=checkpoint, runtime=stage.runtime
        )
        stage.register(self._server)
        servicer = _StageServicer(stage, self._calls, checkpoint=checkpoint)
        stage_pb2_grpc.add_StageServiceServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (stage.service, _STAGE_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await stage.warm_up()
        self.metrics.watch_line(stage.line)
        stage.watch(self.metrics)
        await self._tell_health(stage)
        await self._server.start()
        self._watch = asyncio.create_task(self._watch_health(stage))

    async def _watch_health(self, stage: Stage) -> None:
        while True:
            await asyncio.sleep(_HEALTH_INTERVAL_SECONDS)
            await self._tell_health(stage)

    async def _tell_health(self, stage: Stage) -> None:
        healthy = stage.line.healthy
        self.metrics.tell_serving(healthy)
        answer = health_pb2.HealthCheckResponse
        status = answer.SERVING if healthy else answer.NOT_SERVING
        for name in ("", stage.service, _STAGE_SERVICE):
            await self._health.set(name, status)

    async def drain(self) -> None:
        """Says in its health that it ends, pauses, takes no new work, finishes what runs, and ends.

        Until the pause is over calls are answered as ever: whoever watches the health sends none by
        then, so that hardly one is refused.
        """
        if self._watch is not None:
            self._watch.cancel()
        self.metrics.tell_serving(False)
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._settings.drain_pause_seconds)
        self._calls.draining = True
        if self._stage is not None:
            self._stage.hand_back()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_grace_seconds):
                await self._calls.idle()
        await self.close(grace=_LAST_BYTES_SECONDS)

    async def close(self, *, grace: float | None = None) -> None:
        """Ends; calls under way are cancelled, at once or after `grace` seconds."""
        if self._watch is not None:
            self._watch.cancel()
        await self._server.stop(grace)
        if self._stage is not None:
            await asyncio.to_thread(self._stage.close)
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.close)


async def serve(role: str, settings: Settings, *, open_stage: Callable[[Settings], Stage]) -> None:
    """Serves a stage until SIGTERM or SIGINT, then drains it.

    Prints one JSON line on stdout as soon as calls are answered: role, address and, where they are
    served, the address of the metrics.

    Raises:
        SettingsError: The address or the device cannot be used.
        CheckpointError: The checkpoint cannot.
    """
    server = StageServer(role, settings)
    told = asyncio.Event()
    try:
        await server.start(open_stage)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)
    except BaseException:
        await server.close()
        raise
    ready = {"role": role, "address": server.address}
    if server.metrics_address is not None:
        ready["metrics"] = server.metrics_address
    print(json.dumps(ready), flush=True)
    logger.info("serving", extra=ready)
    await told.wait()
    logger.info("draining", extra={"role": role})
    await server.drain()
    logger.info("ended", extra={"role": role})
