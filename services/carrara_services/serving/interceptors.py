"""Around every call: request id, typed errors, access log, metrics, refusal while draining."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from carrara_models.errors import BadFieldError
from carrara_services.refusals import DrainingError
from carrara_services.serving import errors, limits
from carrara_services.serving.metrics import Metrics

access_log = logging.getLogger("carrara.access")

REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OURS = "/carrara.v1."
_DESCRIBE = "/carrara.v1.StageService/Describe"


class Calls(grpc.aio.ServerInterceptor):
    """Wraps every call of Carrara's own services; health and reflection pass untouched.

    Attributes:
        draining: Set it, and new calls except Describe are refused.
    """

    def __init__(self, *, role: str, metrics: Metrics) -> None:
        self.draining = False
        self._role, self._metrics = role, metrics
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Waits until no call is under way."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Puts the handler of one of our methods into its wrapping."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith(_OURS):
            return handler
        deserializer = _deserializer(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(details.method, handler.unary_stream),
                request_deserializer=deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(details.method, handler.unary_unary),
            request_deserializer=deserializer,
            response_serializer=handler.response_serializer,
        )

    def _unary(self, method: str, handler: Any) -> Any:
        async def unary(request: Any, context: Any) -> Any:
            async with self._call(method, request, context) as record:
                response = await handler(request, context)
                record["response_bytes"] = response.ByteSize()
                return response

        return unary

    def _stream(self, method: str, handler: Any) -> Any:
        # Written from here, not by grpc, so that a cancelled call closes its iterator at once.
        async def stream(request: Any, context: Any) -> None:
            async with (
                self._call(method, request, context) as record,
                contextlib.aclosing(handler(request, context)) as responses,
            ):
                async for response in responses:
                    record["response_bytes"] += response.ByteSize()
                    await context.write(response)

        return stream

    @contextlib.asynccontextmanager
    async def _call(self, method: str, request: Any, context: Any) -> AsyncIterator[dict[str, Any]]:
        began = time.perf_counter()
        record: dict[str, Any] = {
            "request_id": _request_id(context),
            "method": method,
            "peer": context.peer(),
            "request_bytes": 0,
            "response_bytes": 0,
            "code": "CANCELLED",
        }
        self._in_flight += 1
        self._idle.clear()
        try:
            await context.send_initial_metadata(((REQUEST_ID_KEY, record["request_id"]),))
            if isinstance(request, _Undecodable):
                record["request_bytes"] = request.size
                raise BadFieldError("request", f"{request.size} bytes", "a message of carrara.v1")
            record["request_bytes"] = request.ByteSize()
            if self.draining and method != _DESCRIBE:
                raise DrainingError
            yield record
            record["code"] = "OK"
        except Exception as error:
            status = errors.status_of(error, role=self._role, request_id=record["request_id"])
            record["code"] = rpc_status.to_status(status).code.name
            record["reason"] = errors.reason_of(error)
            record["error"] = str(error)
            if not errors.is_expected(error):
                logging.getLogger(__name__).error(
                    "internal error", exc_info=error, extra={"request_id": record["request_id"]}
                )
            await context.abort_with_status(rpc_status.to_status(status))
        finally:
            seconds = time.perf_counter() - began
            self._metrics.call_ended(
                method,
                code=record["code"],
                reason=record.get("reason"),
                seconds=seconds,
                received_bytes=record["request_bytes"],
                sent_bytes=record["response_bytes"],
            )
            record["duration_ms"] = round(seconds * 1e3, 3)
            access_log.info("call", extra=record)
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()


class _Undecodable:
    """Stands for a request whose bytes are no message, so that the handler can refuse it typed."""

    def __init__(self, size: int) -> None:
        self.size = size


def _deserializer(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _Undecodable(len(data))

    return deserialize


def _request_id(context: Any) -> str:
    """The caller's own id if it is a sane one, else a fresh one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex


def deadline_of(context: Any) -> float | None:
    """When the stage must have answered, in the event loop's time; None for no deadline."""
    remaining: float | None = context.time_remaining()
    if remaining is None:
        return None
    margin = min(limits.DEADLINE_MARGIN_SECONDS, remaining / 10)
    return asyncio.get_running_loop().time() + remaining - margin
