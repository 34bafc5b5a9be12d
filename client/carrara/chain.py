"""How stages stand in a row: who feeds whom, checked by contract before any compute.

It knows nothing of connections; it works on what the stages tell about themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from carrara.connections import ROLE_NAMES, Stage
from carrara.contracts import kind_name, mismatch
from carrara.exceptions import ContractError
from carrara.v1.stage_pb2 import KIND_CONDITIONING, KIND_IMAGE, Contract, Port


@dataclass(frozen=True)
class Step:
    """A generator or decoder in its place.

    Attributes:
        stage_index: Its place among all stages, text encoders included.
        encoder: Which text encoder feeds it; None for a stage without conditioning.
        consumer: What the next stage consumes; None for the last.
    """

    stage: Stage
    stage_index: int
    encoder: int | None
    consumer: Contract | None


@dataclass(frozen=True)
class Chain:
    """The stages of a cascade in the order in which an image passes through them."""

    encoders: tuple[Stage, ...]
    steps: tuple[Step, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them."""
        return (*self.encoders, *(step.stage for step in self.steps))


def link(encoders: Sequence[Stage], painters: Sequence[Stage]) -> Chain:
    """Puts connected stages in a row.

    Args:
        encoders: Text encoders, in any order: each painter takes the first that fits.
        painters: Generators and decoders, in the order of the image's way.

    Raises:
        ContractError: Two of them do not fit, or one is not what it was given as; the message names
            both sides.
    """
    for stage in (*encoders, *painters):
        role = ROLE_NAMES.get(stage.description.role, "stage of an unknown role")
        if role != stage.role:
            raise ContractError(
                f"{stage.address} was given as {stage.role}, but it is a {role}",
                role=stage.role,
                address=stage.address,
                reason="CONTRACT",
            )
    feeding = [_encoder_for(stage, encoders) for stage in painters]
    for index, encoder in enumerate(encoders):
        if index not in feeding:
            raise _refusal(encoder, f"no stage of this cascade consumes what {encoder} produces")
    first, last = painters[0], painters[-1]
    for port in _sample_ports(first):
        if port.required:
            wanted = kind_name(port.contract.kind)
            raise _refusal(first, f"{first} consumes {wanted}, but no stage before it produces any")
    consumed = [_consumed(before, stage) for before, stage in pairwise(painters)]
    if not any(contract.kind == KIND_IMAGE for contract in last.description.produces):
        made = " or ".join(kind_name(contract.kind) for contract in last.description.produces)
        raise _refusal(
            last, f"{last} is the last stage and produces {made}, but the caller consumes an image"
        )
    return Chain(
        tuple(encoders),
        tuple(
            Step(stage, len(encoders) + index, encoder, consumer)
            for index, (stage, encoder, consumer) in enumerate(
                zip(painters, feeding, [*consumed, None], strict=True)
            )
        ),
    )


def _encoder_for(stage: Stage, encoders: Sequence[Stage]) -> int | None:
    for port in stage.description.consumes:
        if port.contract.kind != KIND_CONDITIONING:
            continue
        reasons = []
        for index, encoder in enumerate(encoders):
            reason = _fit(encoder, stage, port)
            if reason is None:
                return index
            reasons.append(reason)
        if port.required:
            raise _refusal(stage, "; ".join(reasons) or f"{stage} needs a text-encoder")
    return None


def _sample_ports(stage: Stage) -> list[Port]:
    return [port for port in stage.description.consumes if port.contract.kind != KIND_CONDITIONING]


def _consumed(before: Stage, stage: Stage) -> Contract:
    reasons = []
    for port in _sample_ports(stage):
        reason = _fit(before, stage, port)
        if reason is None:
            return port.contract
        reasons.append(reason)
    nothing = f"{before} is followed by {stage}, which consumes nothing of an earlier stage"
    raise _refusal(stage, "; ".join(reasons) or nothing)


def _fit(before: Stage, stage: Stage, port: Port) -> str | None:
    reasons = [
        mismatch(produced, port, producer_name=str(before), consumer_name=str(stage))
        for produced in before.description.produces
    ]
    if None in reasons:
        return None
    return "; ".join(filter(None, reasons)) or f"{before} produces nothing"


def _refusal(stage: Stage, message: str) -> ContractError:
    return ContractError(message, role=stage.role, address=stage.address, reason="CONTRACT")
