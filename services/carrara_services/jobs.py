"""`Job` messages to work and back: what the servicers of generators and decoders share.

What a part takes and makes stands in its contracts; which of the two it is makes no difference.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from google.protobuf.message import Message

from carrara import contracts as contract_checks
from carrara import tensors
from carrara.v1 import stage_pb2
from carrara_models.contracts import Contract, Kind, Port
from carrara_models.denoising.random import torch_generator
from carrara_models.errors import BadFieldError, ContractError
from carrara_models.limits import MAX_PIXELS
from carrara_models.parts import Decoder, DenoisingRequest, JobState, Part, Sample
from carrara_services import job_states
from carrara_services.admission.happenings import Finished, Suspended, UnderWay
from carrara_services.pictures import picture
from carrara_services.serving import describe, results, validation
from carrara_services.serving.describe import Runtime
from carrara_services.torch_tensors import from_torch, read_random_state, to_torch
from carrara_services.work import Work

_FORMATS = {
    stage_pb2.OUTPUT_FORMAT_UNSPECIFIED: "image",
    stage_pb2.OUTPUT_FORMAT_UINT8: "image",
    stage_pb2.OUTPUT_FORMAT_PNG: "png",
}


class Engine(Protocol):
    """What runs a part's work."""

    @property
    def part(self) -> Part:
        """The part itself."""

    @property
    def resumable(self) -> bool:
        """Whether its work may end suspended, and may be gone on with."""

    def run(
        self, work: Work, *, deadline: float | None
    ) -> AsyncIterator[UnderWay | Finished | Suspended]:
        """Does one piece of work; the result is a `carrara_models.parts.Sample`."""


class Jobs:
    """The jobs of one stage.

    Args:
        role: For messages.
        also_accepts: Spaces of consumers that the operator lets through.
    """

    def __init__(
        self, engine: Engine, *, role: str, runtime: Runtime, also_accepts: Sequence[str] = ()
    ) -> None:
        self._engine, self._role, self._also_accepts = engine, role, also_accepts
        self._provenance = describe.provenance(engine.part, runtime=runtime)
        self._conditioning = _port(engine.part, conditioning=True)
        self._sample = _port(engine.part, conditioning=False)

    async def run(
        self, request: Message, job: stage_pb2.Job, *, deadline: float | None
    ) -> AsyncIterator[stage_pb2.Event]:
        """Runs one job: events while it waits and runs, then its sample or where it was suspended.

        Args:
            request: The message that the job came in.
        """
        validation.refuse_unknown_fields(request)
        consumer = describe.read_contract(job.consumer) if job.HasField("consumer") else None
        produced = self._produced(job, consumer)
        warnings = self._check(job, produced)
        work = Work(
            self._read(job, consumer),
            priority=validation.read_priority(job.priority, field="job.priority"),
            resume=self._resume(job),
            resumable=job.resumable,
            preview_interval_steps=validation.read_preview_interval(job.preview_interval_steps),
        )
        running = self._engine.run(work, deadline=deadline)
        async with contextlib.aclosing(running) as happenings:  # type: ignore[type-var]
            async for happening in happenings:
                if isinstance(happening, UnderWay):
                    yield results.under_way(happening)
                    continue
                usage = results.usage(happening.usage, bytes_in=request.ByteSize())
                job_states.add_usage(usage, job.resume.usage)
                if isinstance(happening, Suspended):
                    state = job_states.write(
                        happening.state, job=job, provenance=self._provenance, usage=usage
                    )
                    yield stage_pb2.Event(suspended=state)
                    continue
                message = await self._message(happening.result, job, produced, consumer)
                usage.bytes_out += message.ByteSize()
                yield stage_pb2.Event(
                    result=stage_pb2.Result(
                        sample=message,
                        usage=usage,
                        provenance=self._provenance,
                        warnings=warnings,
                    )
                )

    def _produced(self, job: stage_pb2.Job, consumer: Contract | None) -> Contract:
        """Which of the things that the part can make this job is about."""
        produces = self._engine.part.produces
        if consumer is None:
            return next((made for made in produces if made.kind is Kind.IMAGE), produces[0])
        for made in produces:
            if made.kind is consumer.kind:
                return made
        problem = contract_checks.mismatch(
            describe.contract(produces[0]),
            stage_pb2.Port(contract=job.consumer),
            producer_name=f"this {self._role}",
            consumer_name="job.consumer of the request",
        )
        raise ContractError(problem or "nothing that this stage makes fits job.consumer")

    def _check(self, job: stage_pb2.Job, produced: Contract) -> list[stage_pb2.Warning]:
        """Refuses a job that cannot be done right, before it takes a place in the line."""
        part = self._engine.part
        validation.check_fingerprint(job.stage_fingerprint, have=part.fingerprint)
        validation.check_arguments(job.arguments, known=part.arguments)
        self._check_format(job, produced)
        warnings = self._check_conditioning(job) + self._check_sample(job)
        return warnings + self._check_consumer(job, produced)

    def _check_format(self, job: stage_pb2.Job, produced: Contract) -> None:
        if produced.kind is not Kind.IMAGE:
            if job.output_format != stage_pb2.OUTPUT_FORMAT_UNSPECIFIED:
                made = produced.kind.name.lower().replace("_", " ")
                raise BadFieldError(
                    "job.output_format", job.output_format, f"unspecified: this job makes {made}"
                )
        elif job.output_format not in _FORMATS:
            names = ", ".join(stage_pb2.OutputFormat.Name(value) for value in _FORMATS)
            raise BadFieldError("job.output_format", job.output_format, names)

    def _check_conditioning(self, job: stage_pb2.Job) -> list[stage_pb2.Warning]:
        port = self._conditioning
        if not job.HasField("conditioning"):
            if port is not None and port.required:
                raise BadFieldError("job.conditioning", None, "what a text encoder has made")
            return []
        if port is None:
            allowed = f"nothing; this {self._role} takes none"
            raise BadFieldError("job.conditioning", "tensors", allowed)
        return validation.check_payload(
            job.conditioning.contract,
            job.conditioning.tensors,
            port=port,
            field="job.conditioning",
            stage=self._role,
        )

    def _check_sample(self, job: stage_pb2.Job) -> list[stage_pb2.Warning]:
        port = self._sample
        if not job.HasField("sample"):
            if port is not None and port.required:
                raise BadFieldError("job.sample", None, "what the stage before has made")
            return []
        if port is None:
            allowed = f"nothing; this {self._role} starts from noise"
            raise BadFieldError("job.sample", "a sample", allowed)
        sample = job.sample
        warnings = validation.check_payload(
            sample.contract, sample.tensors, port=port, field="job.sample", stage=self._role
        )
        _check_size(sample, port)
        return warnings

    def _check_consumer(self, job: stage_pb2.Job, produced: Contract) -> list[stage_pb2.Warning]:
        """Holds what the job makes against what comes after; sizes are never guessed."""
        needs_factor = produced.kind is Kind.LATENTS and not produced.size_factor
        if not job.HasField("consumer"):
            if needs_factor:
                raise BadFieldError(
                    "job.consumer",
                    None,
                    "what the decoder consumes, from its Describe: this stage has no VAE beside "
                    "it and does not guess the size factor",
                )
            return []
        port = stage_pb2.Port(contract=job.consumer)
        if job.consumer.space in self._also_accepts:
            port.also_accepts.append(produced.space)
        message = describe.contract(produced)
        problem = contract_checks.mismatch(
            message,
            port,
            producer_name=f"this {self._role}",
            consumer_name="job.consumer of the request",
        )
        if problem is not None:
            raise ContractError(problem)
        if needs_factor and not job.consumer.size_factor:
            raise BadFieldError("job.consumer.size_factor", 0, "pixels per latent cell, 1 or more")
        return validation.unverified(message, port=port, field="job.consumer")

    def _resume(self, job: stage_pb2.Job) -> JobState | None:
        if not job.HasField("resume"):
            return None
        if not self._engine.resumable:
            allowed = f"nothing: this {self._role} has no steps to go on from"
            raise BadFieldError("job.resume", "a state", allowed)
        return job_states.read(job, provenance=self._provenance)

    def _read(self, job: stage_pb2.Job, consumer: Contract | None) -> DenoisingRequest:
        arguments: dict[str, Any] = {
            field.name: tuple(value) if field.is_repeated else value
            for field, value in job.arguments.ListFields()
        }
        sample = _read_sample(job.sample) if job.HasField("sample") else None
        return DenoisingRequest(
            conditioning=_read_tensors(job.conditioning.tensors, field="job.conditioning"),
            random_state=self._random_state(job, sample),
            consumer=consumer,
            sample=sample,
            **arguments,
        )

    def _random_state(self, job: stage_pb2.Job, sample: Sample | None) -> int | torch.Tensor:
        state = read_random_state(job.random_state, field="job.random_state")
        if state is not None:
            return state
        if sample is not None and sample.random_state is not None:
            return sample.random_state
        if isinstance(self._engine.part, Decoder):  # it draws nothing
            return 0
        raise BadFieldError("job.random_state", None, "a seed or the state of a torch generator")

    async def _message(
        self, sample: Sample, job: stage_pb2.Job, produced: Contract, consumer: Contract | None
    ) -> stage_pb2.Sample:
        part = self._engine.part
        if produced.kind is Kind.IMAGE:
            name = _FORMATS[job.output_format]
            # In a thread: a PNG of a large picture takes longer than a step of others' jobs.
            image = await asyncio.to_thread(picture, sample.tensors["pixels"], png=name == "png")
            made = {name: tensors.from_numpy(image)}
        else:
            made = {name: from_torch(tensor) for name, tensor in sample.tensors.items()}
        message = stage_pb2.Sample(
            contract=describe.contract(_known(produced, consumer), producer=part.fingerprint),
            tensors=made,
            height=sample.height,
            width=sample.width,
        )
        if sample.resize_to is not None:
            message.resize_height, message.resize_width = sample.resize_to
        if sample.random_state is not None and produced.kind is not Kind.IMAGE:
            message.random_state.torch_cpu = sample.random_state.numpy().tobytes()
        return message


def _port(part: Part, *, conditioning: bool) -> stage_pb2.Port | None:
    """The port for conditioning, or the one for samples."""
    ports: list[Port] = [
        port for port in part.consumes if (port.contract.kind is Kind.CONDITIONING) == conditioning
    ]
    return describe.port(ports[0]) if ports else None


def _known(produced: Contract, consumer: Contract | None) -> Contract:
    """The part's contract, with the factors that its consumer brought where it has none."""
    if consumer is None or produced.size_factor:
        return produced
    return replace(
        produced,
        size_factor=consumer.size_factor,
        scaling_factor=consumer.scaling_factor,
        shift_factor=consumer.shift_factor,
    )


def _check_size(sample: stage_pb2.Sample, port: stage_pb2.Port) -> None:
    """Holds what a sample says that it stands for against its tensors."""
    kind = port.contract.kind
    if kind not in (stage_pb2.KIND_LATENTS, stage_pb2.KIND_PIXELS):
        return
    name, factor = ("latents", port.contract.size_factor)
    if kind == stage_pb2.KIND_PIXELS:
        name, factor = ("pixels", 1)
    *_, h, w = sample.tensors[name].shape
    height, width = h * factor, w * factor
    if height * width > MAX_PIXELS:
        allowed = f"up to {MAX_PIXELS} pixels; this makes {height * width}"
        raise BadFieldError(f"job.sample.tensors[{name}]", f"shape [..., {h}, {w}]", allowed)
    for field, given, meant in (
        ("height", sample.height, height),
        ("width", sample.width, width),
    ):
        if given != meant:
            allowed = f"{meant}, which is what the {name} stand for"
            raise BadFieldError(f"job.sample.{field}", given, allowed)
    resized = sample.resize_height * sample.resize_width
    if resized > MAX_PIXELS:
        allowed = f"up to {MAX_PIXELS} pixels; this makes {resized}"
        raise BadFieldError("job.sample.resize_height", sample.resize_height, allowed)
    if bool(sample.resize_height) != bool(sample.resize_width):
        raise BadFieldError(
            "job.sample.resize_width", sample.resize_width, "both sides, or neither"
        )


def _read_sample(message: stage_pb2.Sample) -> Sample:
    resize_to = (message.resize_height, message.resize_width)
    state = read_random_state(message.random_state, field="job.sample.random_state")
    return Sample(
        tensors=_read_tensors(message.tensors, field="job.sample"),
        height=message.height,
        width=message.width,
        random_state=torch_generator(state).get_state() if isinstance(state, int) else state,
        resize_to=resize_to if all(resize_to) else None,
    )


def _read_tensors(messages: Mapping[str, Any], *, field: str) -> dict[str, torch.Tensor]:
    return {
        name: to_torch(tensor, field=f"{field}.tensors[{name}]")
        for name, tensor in messages.items()
    }
