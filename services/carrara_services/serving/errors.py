"""From an exception to what the caller learns: status, reason and details. One table."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from carrara.v1 import stage_pb2
from carrara_models.errors import BadFieldError, ContractError, JobStateError, NumericalError
from carrara_services.refusals import (
    DeadlineError,
    DrainingError,
    FingerprintError,
    QueueFullError,
    RandomStateError,
    StalledError,
    TooLargeError,
    UnknownFieldError,
)

DOMAIN = "carrara"

Details = Callable[[Exception], list[message.Message]]

_ARGUMENTS = frozenset(stage_pb2.Arguments.DESCRIPTOR.fields_by_name)


def _bad_request(error: Exception) -> list[message.Message]:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field=_path(str(getattr(error, "field", ""))), description=str(error)
    )
    return [error_details_pb2.BadRequest(field_violations=[violation])]


def _precondition(kind: str) -> Details:
    def details(error: Exception) -> list[message.Message]:
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=kind, subject=str(getattr(error, "field", "")), description=str(error)
        )
        return [error_details_pb2.PreconditionFailure(violations=[violation])]

    return details


def _retry_info(error: Exception) -> list[message.Message]:
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int(getattr(error, "retry_after_seconds", 1.0) * 1e9))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _nothing(_: Exception) -> list[message.Message]:
    return []


# The first row whose type fits wins; whatever fits none is INTERNAL.
TABLE: tuple[tuple[type[Exception], grpc.StatusCode, str, Details], ...] = (
    (UnknownFieldError, grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_FIELD", _bad_request),
    (RandomStateError, grpc.StatusCode.INVALID_ARGUMENT, "STATE", _bad_request),
    (BadFieldError, grpc.StatusCode.INVALID_ARGUMENT, "BAD_FIELD", _bad_request),
    (
        FingerprintError,
        grpc.StatusCode.FAILED_PRECONDITION,
        "FINGERPRINT",
        _precondition("FINGERPRINT"),
    ),
    (ContractError, grpc.StatusCode.FAILED_PRECONDITION, "CONTRACT", _precondition("CONTRACT")),
    (JobStateError, grpc.StatusCode.FAILED_PRECONDITION, "STATE", _precondition("STATE")),
    (QueueFullError, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", _retry_info),
    (TooLargeError, grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", _nothing),
    (DrainingError, grpc.StatusCode.UNAVAILABLE, "DRAINING", _nothing),
    (StalledError, grpc.StatusCode.UNAVAILABLE, "INTERNAL", _nothing),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE", _nothing),
    (NumericalError, grpc.StatusCode.INTERNAL, "NUMERICAL", _nothing),
)


def is_expected(error: Exception) -> bool:
    """Whether the table has a row for it, so that its traceback is of no interest."""
    return isinstance(error, tuple(row[0] for row in TABLE))


def reason_of(error: Exception) -> str:
    """Gives the reason that a caller is told for an exception."""
    return next((reason for kind, _, reason, _ in TABLE if isinstance(error, kind)), "INTERNAL")


def status_of(error: Exception, *, role: str, request_id: str) -> status_pb2.Status:
    """Makes the status that a caller gets for an exception, with its details."""
    for kind, code, reason, details in TABLE:
        if isinstance(error, kind):
            return _status(
                code, _message(error, role), reason, details(error), error, role, request_id
            )
    text = f"internal error (request {request_id})"
    return _status(grpc.StatusCode.INTERNAL, text, "INTERNAL", [], error, role, request_id)


def _status(
    code: grpc.StatusCode,
    text: str,
    reason: str,
    details: list[message.Message],
    error: Exception,
    role: str,
    request_id: str,
) -> status_pb2.Status:
    metadata = {"stage": role}
    for name in ("step", "limit"):
        if (value := getattr(error, name, None)) is not None:
            metadata[name] = str(value)
    status = status_pb2.Status(code=code.value[0], message=text)
    for detail in (
        error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata),
        error_details_pb2.RequestInfo(request_id=request_id),
        *details,
    ):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _message(error: Exception, role: str) -> str:
    if isinstance(error, BadFieldError):
        return f"{_path(error.field)}: {error.value!r} is not allowed; allowed: {error.allowed}"
    if isinstance(error, NumericalError):
        return f"{error} in the {role}"
    return str(error)


def _path(field: str) -> str:
    """Where a field stands in the request; a part knows a setting by its bare name."""
    return f"job.arguments.{field}" if field in _ARGUMENTS else field
