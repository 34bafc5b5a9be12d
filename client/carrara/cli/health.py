"""`carrara health`: whether a stage serves, as an exit status."""

from __future__ import annotations

from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc


def health(
    address: Annotated[str, typer.Argument(metavar="ADDR", help="host:port or unix:/path.")],
    timeout_seconds: Annotated[float, typer.Option(help="For the answer.")] = 5,
) -> None:
    """Ask a stage whether it serves: exit status 0 if it does, else 1."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.RpcError as error:
            typer.echo(f"carrara: {address}: {error.code().name}: {error.details()}", err=True)
            raise typer.Exit(1) from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    typer.echo(f"{address} {status}")
    raise typer.Exit(0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1)
