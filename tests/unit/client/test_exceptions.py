from __future__ import annotations

import grpc
import pytest
from google.rpc import status_pb2
from toy_stages import fault_details

from carrara import exceptions
from carrara.exceptions import (
    BY_STATUS,
    CarraraError,
    InvalidArgumentError,
    NumericalError,
    ResourceExhaustedError,
    from_rpc_error,
)

FAILURES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


def rpc_error(
    code: grpc.StatusCode, *details: object, text: str = "as the stage put it"
) -> grpc.aio.AioRpcError:
    status = status_pb2.Status(message=text)
    for detail in details:
        status.details.add().Pack(detail)  # type: ignore[arg-type]
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details=text)


def test_there_are_sixteen_failures() -> None:
    assert len(FAILURES) == 16
    assert set(BY_STATUS) == set(FAILURES)


@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
def test_each_status_becomes_its_exception_and_names_the_stage(code: grpc.StatusCode) -> None:
    error = from_rpc_error(rpc_error(code), role="generator", address="g:1", request_id="request-1")
    assert type(error) is BY_STATUS[code]
    assert isinstance(error, CarraraError)
    assert "generator g:1" in str(error)
    assert "as the stage put it" in str(error)
    assert (error.role, error.address, error.request_id) == ("generator", "g:1", "request-1")


def test_details_become_attributes() -> None:
    details = fault_details("QUEUE_FULL", retry_after_seconds=3)
    error = from_rpc_error(
        rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, *details), role="generator", address="g:1"
    )
    assert isinstance(error, ResourceExhaustedError)
    assert error.reason == "QUEUE_FULL"
    assert error.retry_after_seconds == 3
    assert error.request_id == "the-stage-s-own-id"


def test_field_violations_are_read_in_the_message() -> None:
    details = fault_details("BAD_FIELD", field="job.arguments.height")
    error = from_rpc_error(
        rpc_error(grpc.StatusCode.INVALID_ARGUMENT, *details), role="generator", address="g:1"
    )
    assert isinstance(error, InvalidArgumentError)
    assert [violation.field for violation in error.field_violations] == ["job.arguments.height"]
    assert "job.arguments.height: 7 is not allowed; allowed: 8 to 16" in str(error)


def test_a_violation_that_the_message_tells_is_not_told_twice() -> None:
    text = "height: 7 is not allowed; allowed: 8 to 16"
    details = fault_details("BAD_FIELD", field="job.arguments.height")
    error = from_rpc_error(
        rpc_error(grpc.StatusCode.INVALID_ARGUMENT, *details, text=text), role="g", address="a"
    )
    assert str(error).count("7 is not allowed") == 1


def test_not_a_number_is_told_from_other_faults() -> None:
    details = fault_details("NUMERICAL", step="12")
    error = from_rpc_error(
        rpc_error(grpc.StatusCode.INTERNAL, *details), role="generator", address="g:1"
    )
    assert isinstance(error, NumericalError)
    assert error.step == 12


def test_details_of_another_domain_are_not_taken_for_ours() -> None:
    info = fault_details("NUMERICAL", step="12")[0]
    info.domain = "somebody.else"  # type: ignore[attr-defined]
    error = from_rpc_error(rpc_error(grpc.StatusCode.INTERNAL, info), role="g", address="a")
    assert not isinstance(error, NumericalError)
    assert error.reason is None


def test_details_that_cannot_be_read_leave_the_status() -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff no status"))
    broken = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailers)
    error = from_rpc_error(broken, role="decoder", address="d:1")
    assert type(error) is BY_STATUS[grpc.StatusCode.UNAVAILABLE]


def test_the_tree_in_the_docstring_names_every_exception() -> None:
    kinds = [
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, CarraraError)
    ]
    assert len(kinds) >= 12
    assert exceptions.__doc__ is not None
    assert all(f" {name} " in exceptions.__doc__ + " " or name == "CarraraError" for name in kinds)
