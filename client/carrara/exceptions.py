"""What can go wrong, as one exception for each answer that a stage can give.

    CarraraError
    ├── InvalidArgumentError      a setting outside its range; names field, value and range
    ├── ContractError             stages that do not fit together; names both sides
    ├── StageUnavailableError     nobody answers at the address, or the stage is shutting down
    ├── NotAStageError            something answers, but it is no Carrara stage
    ├── DeadlineError             the time is over; says where and after which step
    ├── ResourceExhaustedError    the queue is full, or a message too large; says when to come back
    ├── AccessDeniedError         the stage does not take this caller
    ├── StageCancelledError       the call was ended by something other than the caller
    ├── InternalStageError        a fault in the stage; its log has more under the request ID
    │   └── NumericalError        NaN or infinity in a tensor
    ├── MissingExtraError         a part of Carrara is not installed; names the pip command
    └── CascadeClosedError        the cascade was closed while it was in use, or before

No bare `grpc.RpcError` leaves the SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

_DOMAIN = "carrara"
_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class FieldViolation:
    """One setting that was refused: its path, such as `job.arguments.height`, and why."""

    field: str
    description: str


class CarraraError(Exception):
    """Whatever Carrara raises.

    Attributes:
        role: "text-encoder", "generator" or "decoder"; None where no stage is to blame.
        address: Of that stage, as it was given.
        request_id: What the stage's log calls this request.
        reason: Name of `carrara.v1.ErrorReason` without its prefix, such as "QUEUE_FULL".
        field_violations: What was wrong with which setting.
        retry_after_seconds: When the stage asks to come back.
        step: Denoising steps done when it went wrong.
        limit: What a full queue had too much for: "jobs", "seconds" or this request's "deadline".
    """

    def __init__(
        self,
        message: str,
        *,
        role: str | None = None,
        address: str | None = None,
        request_id: str | None = None,
        reason: str | None = None,
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after_seconds: float | None = None,
        step: int | None = None,
        limit: str | None = None,
    ) -> None:
        super().__init__(message)
        self.role, self.address, self.request_id = role, address, request_id
        self.reason, self.field_violations = reason, field_violations
        self.retry_after_seconds, self.step = retry_after_seconds, step
        self.limit = limit


class InvalidArgumentError(CarraraError):
    """A setting outside its range."""


class ContractError(CarraraError):
    """Stages that do not fit together."""


class StageUnavailableError(CarraraError):
    """Nobody answers at the address, or the stage is shutting down."""


class NotAStageError(CarraraError):
    """Something answers, but it is no Carrara stage, or not one of this role."""


class DeadlineError(CarraraError):
    """The time that the caller gave is over."""


class ResourceExhaustedError(CarraraError):
    """The queue is full, or a message is larger than the stage takes."""


class AccessDeniedError(CarraraError):
    """The stage does not take this caller."""


class StageCancelledError(CarraraError):
    """The call was ended by something other than the caller."""


class InternalStageError(CarraraError):
    """A fault in the stage; its log has more under the request ID."""


class NumericalError(InternalStageError):
    """NaN or infinity in a tensor."""


class MissingExtraError(CarraraError):
    """A part of Carrara is not installed."""


class CascadeClosedError(CarraraError):
    """The cascade was closed while it was in use, or before."""


BY_STATUS: Mapping[grpc.StatusCode, type[CarraraError]] = MappingProxyType(
    {
        grpc.StatusCode.CANCELLED: StageCancelledError,
        grpc.StatusCode.UNKNOWN: InternalStageError,
        grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
        grpc.StatusCode.NOT_FOUND: InternalStageError,
        grpc.StatusCode.ALREADY_EXISTS: InternalStageError,
        grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
        grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
        grpc.StatusCode.FAILED_PRECONDITION: ContractError,
        grpc.StatusCode.ABORTED: InternalStageError,
        grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
        grpc.StatusCode.UNIMPLEMENTED: NotAStageError,
        grpc.StatusCode.INTERNAL: InternalStageError,
        grpc.StatusCode.UNAVAILABLE: StageUnavailableError,
        grpc.StatusCode.DATA_LOSS: InternalStageError,
        grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
    }
)
"""The exception of each status."""

_BY_REASON: Mapping[str, type[CarraraError]] = MappingProxyType({"NUMERICAL": NumericalError})


def from_rpc_error(
    error: grpc.aio.AioRpcError, *, role: str, address: str, request_id: str | None = None
) -> CarraraError:
    """Makes the exception of a failed call; details that cannot be read are left out.

    Args:
        error: As `grpc.aio` raised it.
        role: Of the stage that was called.
        address: Of the replica that was called.
        request_id: As sent; the stage's own takes its place where it names one.
    """
    info, violations, retry_after = None, [], None
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.ErrorInfo) and detail.domain == _DOMAIN:
            info = detail
        elif isinstance(detail, error_details_pb2.RequestInfo):
            request_id = detail.request_id or request_id
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9
        elif isinstance(detail, error_details_pb2.BadRequest):
            violations += [FieldViolation(v.field, v.description) for v in detail.field_violations]
        elif isinstance(detail, error_details_pb2.PreconditionFailure):
            violations += [FieldViolation(v.subject, v.description) for v in detail.violations]
    reason = info.reason if info else None
    metadata = info.metadata if info else {}
    step = metadata.get("step", "")
    kind = _BY_REASON.get(reason or "", BY_STATUS.get(error.code(), InternalStageError))
    text = error.details() or error.code().name
    if kind is NotAStageError:
        text = f"this is no Carrara {role} ({text})"
    unsaid = [f"{v.field}: {v.description}" for v in violations if v.description not in text]
    return kind(
        f"{role} {address}: {'; '.join([text, *unsaid])}",
        role=role,
        address=address,
        request_id=request_id,
        reason=reason,
        field_violations=tuple(violations),
        retry_after_seconds=retry_after,
        step=int(step) if step.isdecimal() else None,
        limit=metadata.get("limit") or None,
    )


def _details(error: grpc.aio.AioRpcError) -> list[Message]:
    known = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.RequestInfo,
        error_details_pb2.RetryInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.PreconditionFailure,
    )
    found: list[Message] = []
    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS_KEY:
            continue
        try:
            packed = status_pb2.Status.FromString(value).details
            for any_message in packed:
                for kind in known:
                    if any_message.Is(kind.DESCRIPTOR):
                        message = kind()
                        any_message.Unpack(message)
                        found.append(message)
        except DecodeError:  # whatever else is said, the status itself still counts
            continue
    return found
