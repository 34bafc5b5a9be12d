"""How stages stand in a row: who feeds whom, checked by contract before any compute.

It knows nothing of connections; it works on what the stages tell about themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations, product

from carrara.connections import ROLE_NAMES, Stage
from carrara.contracts import kind_name, mismatch
from carrara.exceptions import ContractError
from carrara.manifest import Manifest
from carrara.v1.stage_pb2 import KIND_CONDITIONING, KIND_IMAGE, Contract, Port

_MAX_ORDERED = 5  # stages of one role; more are taken in the order given


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
    """The stages of a cascade in the order in which an image passes through them.

    Attributes:
        belongs_together: Whether a manifest names the weights of all stages, so that nobody need be
            told that a contract could be checked by structure only.
    """

    encoders: tuple[Stage, ...]
    steps: tuple[Step, ...]
    belongs_together: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them."""
        return (*self.encoders, *(step.stage for step in self.steps))


def link(encoders: Sequence[Stage], painters: Sequence[Stage]) -> Chain:
    """Puts connected stages in a row.

    Args:
        encoders: Text encoders, in any order: each painter takes the first that fits.
        painters: Generators, then decoders. Inside each role what they consume and produce gives
            their order; where that leaves a choice, the given one.

    Raises:
        ContractError: Two of them do not fit, or one is not what it was given as; the message names
            both sides. Or several orders fit, and the given one does not.
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
    painters, consumed = _in_order(painters)
    feeding = [_encoder_for(stage, encoders) for stage in painters]
    for index, encoder in enumerate(encoders):
        if index not in feeding:
            raise _refusal(encoder, f"no stage of this cascade consumes what {encoder} produces")
    return Chain(
        tuple(encoders),
        tuple(
            Step(stage, len(encoders) + index, encoder, consumer)
            for index, (stage, encoder, consumer) in enumerate(
                zip(painters, feeding, [*consumed, None], strict=True)
            )
        ),
    )


def held_to(chain: Chain, manifest: Manifest) -> Chain:
    """Holds the weights of connected stages to those that a manifest names.

    Args:
        manifest: With the stages of each role in the order in which they were given to `link`.

    Returns:
        The chain; it belongs together if the manifest names the weights of all its stages.

    Raises:
        ContractError: A stage has other weights.
    """
    wanted = {stage.fingerprint for stage in manifest.stages if stage.fingerprint}
    have = {stage.description.fingerprint for stage in chain.stages}
    for stage in manifest.stages:
        if stage.fingerprint and stage.fingerprint not in have:
            others = [
                each
                for each in chain.stages
                if each.role == stage.role and each.description.fingerprint not in wanted
            ]
            at = f"{others[0]} has {others[0].description.fingerprint}" if others else "none has"
            raise ContractError(
                f"the manifest's {stage.stage} has the fingerprint {stage.fingerprint}; {at}",
                role=stage.role,
                address=stage.address,
                reason="FINGERPRINT",
            )
    return replace(chain, belongs_together=all(stage.fingerprint for stage in manifest.stages))


def _in_order(painters: Sequence[Stage]) -> tuple[Sequence[Stage], list[Contract]]:
    """Puts generators and decoders into an order in which each fits the next.

    Returns:
        The stages, and what each but the first consumes of the one before.
    """
    try:
        return painters, _links(painters)
    except ContractError as error:
        refusal = error
    found: list[tuple[Sequence[Stage], list[Contract]]] = []
    generators = [stage for stage in painters if stage.role == "generator"]
    decoders = [stage for stage in painters if stage.role != "generator"]
    if max(len(generators), len(decoders)) <= _MAX_ORDERED:
        for first, second in product(permutations(generators), permutations(decoders)):
            with contextlib.suppress(ContractError):
                found.append(((*first, *second), _links([*first, *second])))
    if not found:
        raise refusal
    if len(found) > 1:
        ways = " or ".join(", ".join(str(stage) for stage in order) for order, _ in found)
        raise _refusal(
            painters[0], f"the stages fit in several orders; give them in the one meant: {ways}"
        )
    return found[0]


def _links(painters: Sequence[Stage]) -> list[Contract]:
    """What each stage but the first consumes of the one before.

    Raises:
        ContractError: The stages do not fit in this order.
    """
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
    return consumed


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
