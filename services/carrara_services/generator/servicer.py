"""The generator's messages: from a request to the engine's job, and from its sample to events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import torch

from carrara import contracts as contract_checks
from carrara.v1 import generator_pb2, generator_pb2_grpc, stage_pb2
from carrara_models.contracts import Contract
from carrara_models.denoising.random import STATE_BYTES
from carrara_models.errors import BadFieldError, ContractError
from carrara_models.parts import DenoisingRequest, Sample
from carrara_services.admission import Finished
from carrara_services.generator import ROLE
from carrara_services.generator.engine import (
    GeneratorEngine,
    check_random_state,
    sample_contract,
)
from carrara_services.refusals import RandomStateError
from carrara_services.serving import describe, results, validation
from carrara_services.serving.describe import Runtime
from carrara_services.serving.interceptors import deadline_of
from carrara_services.torch_tensors import from_torch, to_torch


class GeneratorServicer(generator_pb2_grpc.GeneratorServiceServicer):
    """Answers Generate."""

    def __init__(self, engine: GeneratorEngine, *, runtime: Runtime) -> None:
        self._engine = engine
        self._provenance = describe.provenance(engine.part, runtime=runtime)
        self._ports = [describe.port(port) for port in engine.part.consumes]
        self._produces = describe.contract(engine.part.produces[0])

    async def Generate(
        self, request: generator_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[generator_pb2.GenerateResponse]:
        """Runs one job: events while it waits and runs, then its sample."""
        validation.refuse_unknown_fields(request)
        job = request.job
        warnings = self._check(job)
        consumer = describe.read_contract(job.consumer) if job.HasField("consumer") else None
        work = self._engine.generate(_read(job, consumer), deadline=deadline_of(context))
        async with contextlib.aclosing(work) as happenings:  # type: ignore[type-var]
            async for happening in happenings:
                if isinstance(happening, Finished):
                    event = self._finished(happening, request, consumer, warnings)
                else:
                    event = results.under_way(happening)
                yield generator_pb2.GenerateResponse(event=event)

    def _check(self, job: stage_pb2.Job) -> list[stage_pb2.Warning]:
        """Refuses a job that cannot be done right, before it takes a place in the line."""
        part = self._engine.part
        validation.check_fingerprint(job.stage_fingerprint, have=part.fingerprint)
        validation.check_arguments(job.arguments, known=part.arguments)
        if job.output_format != stage_pb2.OUTPUT_FORMAT_UNSPECIFIED:
            raise BadFieldError(
                "job.output_format", job.output_format, "unspecified: it makes latents, no images"
            )
        if job.HasField("sample"):
            raise BadFieldError(
                "job.sample", "a sample", "nothing; this generator starts from noise"
            )
        warnings = []
        for port in self._ports:
            if job.HasField("conditioning"):
                warnings += validation.check_payload(
                    job.conditioning.contract,
                    job.conditioning.tensors,
                    port=port,
                    field="job.conditioning",
                    stage=ROLE,
                )
            elif port.required:
                raise BadFieldError("job.conditioning", None, "what a text encoder has made")
        return warnings + self._check_consumer(job)

    def _check_consumer(self, job: stage_pb2.Job) -> list[stage_pb2.Warning]:
        if not job.HasField("consumer"):
            if not self._produces.size_factor:
                raise BadFieldError(
                    "job.consumer",
                    None,
                    "what the decoder consumes, from its Describe: this generator has no VAE "
                    "beside it and does not guess the size factor",
                )
            return []
        port = stage_pb2.Port(contract=job.consumer)
        problem = contract_checks.mismatch(
            self._produces,
            port,
            producer_name=f"this {ROLE}",
            consumer_name="job.consumer of the request",
        )
        if problem is not None:
            raise ContractError(problem)
        if not self._produces.size_factor and not job.consumer.size_factor:
            raise BadFieldError("job.consumer.size_factor", 0, "pixels per latent cell, 1 or more")
        return validation.unverified(self._produces, port=port, field="job.consumer")

    def _finished(
        self,
        finished: Finished,
        request: generator_pb2.GenerateRequest,
        consumer: Contract | None,
        warnings: list[stage_pb2.Warning],
    ) -> stage_pb2.Event:
        part = self._engine.part
        sample: Sample = finished.result
        message = stage_pb2.Sample(
            contract=describe.contract(
                sample_contract(part, consumer=consumer), producer=part.fingerprint
            ),
            tensors={name: from_torch(tensor) for name, tensor in sample.tensors.items()},
            height=sample.height,
            width=sample.width,
        )
        if sample.random_state is not None:
            message.random_state.torch_cpu = sample.random_state.numpy().tobytes()
        usage = results.usage(
            finished.usage, bytes_in=request.ByteSize(), bytes_out=message.ByteSize()
        )
        return stage_pb2.Event(
            result=stage_pb2.Result(
                sample=message, usage=usage, provenance=self._provenance, warnings=warnings
            )
        )


def _read(job: stage_pb2.Job, consumer: Contract | None) -> DenoisingRequest:
    arguments: dict[str, Any] = {field.name: value for field, value in job.arguments.ListFields()}
    return DenoisingRequest(
        conditioning={
            name: to_torch(tensor, field=f"job.conditioning.tensors[{name}]")
            for name, tensor in job.conditioning.tensors.items()
        },
        random_state=_random_state(job.random_state),
        consumer=consumer,
        **arguments,
    )


def _random_state(message: stage_pb2.RandomState) -> int | torch.Tensor:
    match message.WhichOneof("state"):
        case "seed":
            return int(message.seed)
        case "torch_cpu":
            field, data = "job.random_state.torch_cpu", message.torch_cpu
            if len(data) != STATE_BYTES:
                raise RandomStateError(field, f"{len(data)} bytes; allowed: {STATE_BYTES}")
            state = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            check_random_state(state, field=field)
            return state
        case _:
            raise BadFieldError(
                "job.random_state", None, "a seed or the state of a torch generator"
            )
