"""Checks of a request before any compute; each refusal names field, value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from google.protobuf import message, unknown_fields

from carrara import contracts as contract_checks
from carrara.v1 import stage_pb2, tensor_pb2
from carrara_models.contracts import Argument
from carrara_models.errors import BadFieldError, ContractError
from carrara_models.limits import MAX_PIXELS, MAX_PREVIEW_INTERVAL_STEPS
from carrara_services.admission.demand import Priority
from carrara_services.refusals import FingerprintError, UnknownFieldError
from carrara_services.serving import limits

_PRIORITIES: Mapping[int, Priority] = {
    stage_pb2.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    stage_pb2.PRIORITY_LOW: Priority.LOW,
    stage_pb2.PRIORITY_NORMAL: Priority.NORMAL,
    stage_pb2.PRIORITY_HIGH: Priority.HIGH,
}


def refuse_unknown_fields(request: message.Message) -> None:
    """Refuses what this stage would otherwise drop in silence, at any depth.

    Raises:
        UnknownFieldError: The field's number and the message that it stands in.
    """
    for path, part in _messages(request, "request"):
        unknown = unknown_fields.UnknownFieldSet(part)
        if len(unknown):
            raise UnknownFieldError(f"{path}.{unknown[0].field_number}")


def _messages(parent: message.Message, path: str) -> Iterator[tuple[str, message.Message]]:
    yield path, parent
    for field, value in parent.ListFields():
        kind = field.message_type
        if kind is None:
            continue
        inner = f"{path}.{field.name}"
        if kind.GetOptions().map_entry:
            if kind.fields_by_name["value"].message_type is not None:
                for key in value:
                    yield from _messages(value[key], f"{inner}[{key!r}]")
        elif field.is_repeated:
            for index, item in enumerate(value):
                yield from _messages(item, f"{inner}[{index}]")
        else:
            yield from _messages(value, inner)


def check_fingerprint(wanted: str, *, have: str) -> None:
    """Refuses a job that was meant for other weights; an empty one is meant for any.

    Raises:
        FingerprintError: Both fingerprints.
    """
    if wanted and wanted != have:
        raise FingerprintError(wanted, have=have)


def read_priority(value: int, *, field: str) -> Priority:
    """Reads a priority; none is the normal one.

    Raises:
        BadFieldError: It is none that this version knows.
    """
    if value not in _PRIORITIES:
        raise BadFieldError(field, value, ", ".join(stage_pb2.Priority.keys()))
    return _PRIORITIES[value]


def read_preview_interval(steps: int) -> int:
    """Reads after how many steps a job is shown; of a part that cannot show it that is never.

    Raises:
        BadFieldError: They are more than any job has.
    """
    if steps > MAX_PREVIEW_INTERVAL_STEPS:
        allowed = f"1 to {MAX_PREVIEW_INTERVAL_STEPS}, or 0 for no previews"
        raise BadFieldError("job.preview_interval_steps", steps, allowed)
    return steps


def check_text(text: str, *, field: str) -> None:
    """Refuses a text above the limit.

    Raises:
        BadFieldError: Its size and the limit.
    """
    size = len(text.encode())
    if size > limits.MAX_PROMPT_BYTES:
        raise BadFieldError(
            field, f"{size} bytes", f"at most {limits.MAX_PROMPT_BYTES} bytes of UTF-8"
        )


def check_arguments(arguments: stage_pb2.Arguments, *, known: Iterable[Argument]) -> None:
    """Checks what is set against what the stage takes.

    Raises:
        BadFieldError: The first setting that is unknown or out of range.
    """
    check_values({field.name: value for field, value in arguments.ListFields()}, known=known)
    _check_pixels(arguments, {argument.name: argument for argument in known})


def check_values(values: Mapping[str, object], *, known: Iterable[Argument]) -> None:
    """Refuses settings that a stage does not take, and values outside their range.

    Args:
        values: By name; what is not there takes the default.

    Raises:
        BadFieldError: The first setting that is unknown or out of range.
    """
    table = {argument.name: argument for argument in known}
    for name, value in values.items():
        if name not in table:
            raise BadFieldError(name, value, f"nothing; this stage takes {', '.join(table)}")
        _check_argument(value, table[name])


def _check_pixels(arguments: stage_pb2.Arguments, table: Mapping[str, Argument]) -> None:
    sides = {}
    for name in ("height", "width"):
        default = table[name].default if name in table else None
        sides[name] = getattr(arguments, name) if arguments.HasField(name) else default
    height, width = sides["height"], sides["width"]
    if height is not None and width is not None and height * width > MAX_PIXELS:
        pixels = int(height * width)
        allowed = f"height x width up to {MAX_PIXELS} pixels; this makes {pixels}"
        name = "height" if arguments.HasField("height") else "width"
        raise BadFieldError(name, sides[name], allowed)


def _check_argument(value: object, argument: Argument) -> None:
    if isinstance(value, str):
        if argument.choices and value not in argument.choices:
            raise BadFieldError(argument.name, value, ", ".join(argument.choices))
        return
    numbers = [value] if isinstance(value, int | float) else list(cast(Iterable[float], value))
    low = -math.inf if argument.minimum is None else argument.minimum
    high = math.inf if argument.maximum is None else argument.maximum
    for number in numbers:
        assert isinstance(number, int | float)
        off_grid = argument.multiple_of and number % argument.multiple_of
        if not math.isfinite(number) or not low <= number <= high or off_grid:
            shown = numbers if argument.length else number
            raise BadFieldError(argument.name, shown, _range(argument))
    if argument.length and len(numbers) != argument.length:
        raise BadFieldError(argument.name, numbers, _range(argument))


def _range(argument: Argument) -> str:
    words = []
    if argument.minimum is not None and argument.maximum is not None:
        words.append(f"{argument.minimum:g} to {argument.maximum:g}")
    elif argument.minimum is not None:
        words.append(f"{argument.minimum:g} or more")
    elif argument.maximum is not None:
        words.append(f"up to {argument.maximum:g}")
    if argument.multiple_of:
        words.append(f"a multiple of {argument.multiple_of}")
    if argument.length:
        words.insert(0, f"{argument.length} numbers")
    return ", ".join(words) or "finite numbers"


def check_payload(
    contract: stage_pb2.Contract,
    tensors: Mapping[str, tensor_pb2.Tensor],
    *,
    port: stage_pb2.Port,
    field: str,
    stage: str,
) -> list[stage_pb2.Warning]:
    """Checks what the stage before has made against what this one consumes.

    Args:
        field: Where the payload stands in the request.
        stage: This stage's role.

    Returns:
        A warning where a space was unknown on one side.

    Raises:
        ContractError: Both sides.
    """
    names = {"producer_name": f"{field} of the request", "consumer_name": f"this {stage}"}
    problem = contract_checks.mismatch(contract, port, **names)
    if problem is None:
        problem = contract_checks.tensors_mismatch(port.contract.tensors, tensors)
    if problem is not None:
        raise ContractError(problem)
    return unverified(contract, port=port, field=field)


def unverified(
    produced: stage_pb2.Contract, *, port: stage_pb2.Port, field: str
) -> list[stage_pb2.Warning]:
    """Warns where two contracts could not be compared because one side does not know its space."""
    doubt = contract_checks.unverified(produced, port)
    if doubt is None:
        return []
    return [
        stage_pb2.Warning(
            code=stage_pb2.WARNING_CODE_CONTRACT_UNVERIFIED, message=doubt, field=field
        )
    ]
