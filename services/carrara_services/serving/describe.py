"""A part's description as messages: contracts, arguments, limits, provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from carrara.v1 import stage_pb2, tensor_pb2
from carrara_models import contracts
from carrara_models.errors import BadFieldError
from carrara_models.limits import MAX_PIXELS
from carrara_services.serving import limits

ROLES = {
    "text-encoder": stage_pb2.ROLE_TEXT_ENCODER,
    "generator": stage_pb2.ROLE_GENERATOR,
    "decoder": stage_pb2.ROLE_DECODER,
}


class DescribedPart(Protocol):
    """What `carrara_models.parts.Part` tells that needs no torch."""

    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def stage(self) -> str: ...  # noqa: D102
    @property
    def components(self) -> tuple[contracts.Component, ...]: ...  # noqa: D102
    @property
    def consumes(self) -> tuple[contracts.Port, ...]: ...  # noqa: D102
    @property
    def produces(self) -> tuple[contracts.Contract, ...]: ...  # noqa: D102
    @property
    def arguments(self) -> tuple[contracts.Argument, ...]: ...  # noqa: D102
    @property
    def preview(self) -> object: ...  # noqa: D102


@dataclass(frozen=True)
class Runtime:
    """Where and how a part computes.

    Attributes:
        exact: Bit-identical to the one-process pipeline run alone, at an equal number of threads.
        precision: Data type of the networks, as torch spells it.
        device_memory: Read the device's memory in bytes, by kind; None where that is the process's.
    """

    exact: bool
    engine: str
    precision: str
    device: str
    num_threads: int
    versions: Mapping[str, str] = field(default_factory=dict)
    device_memory: Mapping[str, Callable[[], int]] | None = None


def contract(value: contracts.Contract, *, producer: str = "") -> stage_pb2.Contract:
    """Makes the message of a contract; `producer` for one that stands on a payload."""
    message = stage_pb2.Contract(
        kind=value.kind.value,
        space=value.space,
        producer=producer,
        size_factor=value.size_factor,
        scaling_factor=value.scaling_factor,
        shift_factor=value.shift_factor,
    )
    if not producer:
        message.tensors.extend(
            tensor_pb2.TensorSpec(name=spec.name, shape=spec.shape, required=spec.required)
            for spec in value.tensors
        )
    return message


def read_contract(message: stage_pb2.Contract) -> contracts.Contract:
    """Reads what the next stage consumes.

    Raises:
        BadFieldError: Its kind is none that this version knows.
    """
    known = {stage_pb2.Kind.Value(kind.value): kind for kind in contracts.Kind}
    if message.kind not in known:
        raise BadFieldError(
            "job.consumer.kind", message.kind, ", ".join(kind.value for kind in known.values())
        )
    return contracts.Contract(
        kind=known[message.kind],
        space=message.space,
        tensors=tuple(
            contracts.TensorSpec(spec.name, tuple(spec.shape), spec.required)
            for spec in message.tensors
        ),
        size_factor=message.size_factor,
        scaling_factor=message.scaling_factor,
        shift_factor=message.shift_factor,
    )


def port(value: contracts.Port) -> stage_pb2.Port:
    """Makes the message of an input."""
    return stage_pb2.Port(
        contract=contract(value.contract),
        required=value.required,
        also_accepts=value.also_accepts,
    )


def argument(value: contracts.Argument) -> stage_pb2.Argument:
    """Makes the message of a setting."""
    return stage_pb2.Argument(
        name=value.name,
        minimum=value.minimum,
        maximum=value.maximum,
        default_number=value.default,
        multiple_of=value.multiple_of,
        choices=value.choices,
        length=value.length,
    )


def provenance(part: DescribedPart, *, runtime: Runtime) -> stage_pb2.Provenance:
    """Says what made a result."""
    return stage_pb2.Provenance(
        stage_fingerprint=part.fingerprint,
        numerics=stage_pb2.NUMERICS_EXACT if runtime.exact else stage_pb2.NUMERICS_FAST,
        engine=runtime.engine,
        precision=f"DATA_TYPE_{runtime.precision.upper()}",
        device=runtime.device,
        num_threads=runtime.num_threads,
        versions=runtime.versions,
    )


def describe(
    part: DescribedPart,
    *,
    role: str,
    checkpoint: str,
    runtime: Runtime,
    load: stage_pb2.Load,
    resumable: bool,
) -> stage_pb2.DescribeResponse:
    """Answers Describe."""
    return stage_pb2.DescribeResponse(
        role=ROLES[role],
        stage=part.stage,
        family=part.family,
        fingerprint=part.fingerprint,
        checkpoint=checkpoint,
        components=[
            stage_pb2.Component(
                name=component.name,
                class_name=component.class_name,
                fingerprint=component.fingerprint,
                parameters=component.parameters,
            )
            for component in part.components
        ],
        consumes=[port(value) for value in part.consumes],
        produces=[contract(value) for value in part.produces],
        arguments=[argument(value) for value in part.arguments],
        provenance=provenance(part, runtime=runtime),
        max_message_bytes=limits.MAX_MESSAGE_BYTES,
        max_pixels=MAX_PIXELS,
        max_prompt_bytes=limits.MAX_PROMPT_BYTES if role == "text-encoder" else 0,
        load=load,
        resumable=resumable,
        previews=part.preview is not None,
    )
