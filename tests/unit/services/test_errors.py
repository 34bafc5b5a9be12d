"""Each exception's status, reason and details, and that nothing internal leaks."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from carrara.v1 import stage_pb2
from carrara_models.errors import BadFieldError, ContractError, JobStateError, NumericalError
from carrara_services import refusals
from carrara_services.serving.errors import TABLE, is_expected, status_of

Code = grpc.StatusCode
CASES: list[tuple[Exception, grpc.StatusCode, str, type | None]] = [
    (
        BadFieldError("height", 65, "a multiple of 8"),
        Code.INVALID_ARGUMENT,
        "BAD_FIELD",
        error_details_pb2.BadRequest,
    ),
    (
        refusals.UnknownFieldError("request.job.99"),
        Code.INVALID_ARGUMENT,
        "UNKNOWN_FIELD",
        error_details_pb2.BadRequest,
    ),
    (
        refusals.RandomStateError("job.random_state.torch_cpu", "3 bytes"),
        Code.INVALID_ARGUMENT,
        "STATE",
        error_details_pb2.BadRequest,
    ),
    (
        ContractError("A makes latents, B takes pixels"),
        Code.FAILED_PRECONDITION,
        "CONTRACT",
        error_details_pb2.PreconditionFailure,
    ),
    (
        refusals.FingerprintError("aa", have="bb"),
        Code.FAILED_PRECONDITION,
        "FINGERPRINT",
        error_details_pb2.PreconditionFailure,
    ),
    (
        JobStateError("job_digest", "the state is of another job"),
        Code.FAILED_PRECONDITION,
        "STATE",
        error_details_pb2.PreconditionFailure,
    ),
    (
        refusals.QueueFullError("64 jobs are waiting", retry_after_seconds=1.5),
        Code.RESOURCE_EXHAUSTED,
        "QUEUE_FULL",
        error_details_pb2.RetryInfo,
    ),
    (refusals.TooLargeError(step=2), Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", None),
    (refusals.DrainingError(), Code.UNAVAILABLE, "DRAINING", None),
    (refusals.StalledError(), Code.UNAVAILABLE, "INTERNAL", None),
    (refusals.DeadlineError("in x", step=4), Code.DEADLINE_EXCEEDED, "DEADLINE", None),
    (NumericalError("latents", 3), Code.INTERNAL, "NUMERICAL", None),
]


def unpacked(status: status_pb2.Status, kind: type) -> object:
    [packed] = [detail for detail in status.details if detail.Is(kind.DESCRIPTOR)]
    message = kind()
    packed.Unpack(message)
    return message


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case[0]).__name__)
def test_an_exception_has_its_status_reason_and_details(case):
    error, code, reason, kind = case
    status = status_of(error, role="generator", request_id="r1")
    assert status.code == code.value[0]
    info = unpacked(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, info.metadata["stage"]) == (reason, "carrara", "generator")
    assert stage_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")
    assert unpacked(status, error_details_pb2.RequestInfo).request_id == "r1"
    if kind is not None:
        assert unpacked(status, kind).ByteSize()
    assert is_expected(error)


def test_every_row_of_the_table_is_tried_above():
    assert {row[0] for row in TABLE} == {type(case[0]) for case in CASES}


def test_a_setting_is_named_by_its_path_in_the_request():
    status = status_of(CASES[0][0], role="generator", request_id="r1")
    [violation] = unpacked(status, error_details_pb2.BadRequest).field_violations
    assert violation.field == "job.arguments.height"
    assert "65" in violation.description
    assert "a multiple of 8" in violation.description
    assert status.message.startswith("job.arguments.height: 65")


def test_a_step_and_a_delay_arrive_as_numbers():
    status = status_of(NumericalError("latents", 3), role="generator", request_id="r1")
    assert unpacked(status, error_details_pb2.ErrorInfo).metadata["step"] == "3"
    full = refusals.QueueFullError("64 jobs are waiting", retry_after_seconds=1.5)
    status = status_of(full, role="generator", request_id="r1")
    assert unpacked(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1500
    assert unpacked(status, error_details_pb2.ErrorInfo).metadata["limit"] == "jobs"


def test_anything_else_tells_the_request_id_and_nothing_more():
    error = RuntimeError("/secret/path is broken")
    status = status_of(error, role="generator", request_id="r1")
    assert status.code == Code.INTERNAL.value[0]
    assert status.message == "internal error (request r1)"
    assert b"secret" not in status.SerializeToString()
    assert not is_expected(error)
