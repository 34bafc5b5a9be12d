"""The check that two stages fit: by structure, and by where the numbers come from.

It works on messages alone, so that the client runs it at connect time and every stage runs the same
check again before any compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from carrara.v1.stage_pb2 import Contract, Kind, Port
from carrara.v1.tensor_pb2 import Tensor, TensorSpec

_SHOWN = 12  # characters of a fingerprint that a message shows


def mismatch(
    produced: Contract, port: Port, *, producer_name: str, consumer_name: str
) -> str | None:
    """Tells why what one stage produces does not fit what the next consumes.

    What either side leaves open (a space of "", a factor of 0, a dimension of 0, a payload without
    tensor specs) contradicts nothing; `unverified` reports an open space.

    Args:
        produced: From `Describe`, or of a payload.
        port: From the consumer's `Describe`.
        producer_name: How a message calls the producing side: "text-encoder localhost:50051".
        consumer_name: Likewise for the consuming side.

    Returns:
        None where they fit, else a sentence that names both sides and what each says.
    """
    wanted = port.contract

    def differ(made: str, taken: str) -> str:
        return f"{producer_name} produces {made}, but {consumer_name} consumes {taken}"

    if produced.kind != wanted.kind:
        return differ(kind_name(produced.kind), kind_name(wanted.kind))
    kind = kind_name(wanted.kind)
    if _known_and_different(produced.size_factor, wanted.size_factor):
        return differ(
            f"{kind} of size factor {produced.size_factor}", f"size factor {wanted.size_factor}"
        )
    if _known_and_different(produced.scaling_factor, wanted.scaling_factor):
        return differ(
            f"{kind} of scaling factor {produced.scaling_factor:g}",
            f"scaling factor {wanted.scaling_factor:g}",
        )
    # A shift of 0 is a value like any other; whether it is known shows in the scaling factor.
    if (
        produced.scaling_factor
        and wanted.scaling_factor
        and produced.shift_factor != wanted.shift_factor
    ):
        return differ(
            f"{kind} of shift factor {produced.shift_factor:g}",
            f"shift factor {wanted.shift_factor:g}",
        )
    if produced.tensors and wanted.tensors:
        made = {spec.name: spec for spec in produced.tensors}
        taken = {spec.name: spec for spec in wanted.tensors}
        for name, spec in taken.items():
            if name not in made:
                if spec.required:
                    return differ(f"{kind} without {name}", f"{name} {_sizes(spec.shape)}")
            elif not _shapes_meet(made[name].shape, spec.shape):
                return differ(f"{name} {_sizes(made[name].shape)}", f"{name} {_sizes(spec.shape)}")
        for name, spec in made.items():
            if spec.required and name not in taken:
                return differ(f"{name} {_sizes(spec.shape)}", f"{kind} without it")
    spaces = {wanted.space, *port.also_accepts}
    if produced.space and wanted.space and produced.space not in spaces:
        return differ(
            f"{kind} in the space {produced.space[:_SHOWN]}", f"the space {wanted.space[:_SHOWN]}"
        )
    return None


def unverified(produced: Contract, port: Port) -> str | None:
    """Tells that two sides fit by structure while the space is unknown on one of them.

    Args:
        produced: From `Describe`, or of a payload.
        port: From the consumer's `Describe`.

    Returns:
        None where both spaces are known, else a sentence for a warning.
    """
    if produced.space and port.contract.space:
        return None
    made = produced.space[:_SHOWN] or "unknown"
    taken = port.contract.space[:_SHOWN] or "unknown"
    return (
        f"whether the {kind_name(produced.kind)} fit could only be checked by structure: "
        f"produced in the space {made}, consumed in the space {taken}"
    )


def tensors_mismatch(specs: Iterable[TensorSpec], tensors: Mapping[str, Tensor]) -> str | None:
    """Tells why a payload's tensors are not those that a port wants.

    Only names and shapes are looked at; `carrara.tensors.to_numpy` checks the bytes.

    Args:
        specs: Of the consuming port. A dimension of 0 stands for any size from 1 on.
        tensors: Of the payload, by name.

    Returns:
        None where they fit, else a sentence that names the tensor.
    """
    known = {spec.name: spec for spec in specs}
    for name in sorted(tensors):
        if name not in known:
            return f"{name} is not among the tensors taken: {', '.join(sorted(known)) or 'none'}"
        shape, wanted = tensors[name].shape, known[name].shape
        if 0 in shape or not _shapes_meet(shape, wanted):
            return f"{name} has the shape {_sizes(shape, any_size='0')}; taken: {_sizes(wanted)}"
    for name, spec in known.items():
        if spec.required and name not in tensors:
            return f"{name} {_sizes(spec.shape)} is missing"
    return None


def kind_name(kind: int) -> str:
    """Gives the word for a kind in messages: "latents", "image embeds"."""
    if kind not in Kind.values():
        return f"kind {kind}"
    return Kind.Name(kind).removeprefix("KIND_").replace("_", " ").lower()


def _known_and_different(left: float, right: float) -> bool:
    return bool(left and right and left != right)


def _shapes_meet(left: Iterable[int], right: Iterable[int]) -> bool:
    left, right = list(left), list(right)
    return len(left) == len(right) and not any(map(_known_and_different, left, right))


def _sizes(shape: Iterable[int], *, any_size: str = "any") -> str:
    return f"[{', '.join(str(size) if size else any_size for size in shape)}]"
