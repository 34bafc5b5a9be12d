"""What a caller asks for, held to what the stages say that they take, before any compute."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard, cast

from carrara import arguments
from carrara.arguments import NAMES, OF_THE_REQUEST, TEXTS, GenerateArguments, Value
from carrara.chain import Chain
from carrara.exceptions import FieldViolation, InvalidArgumentError
from carrara.v1 import stage_pb2
from carrara.v1.stage_pb2 import Argument

# Unset is the normal one, which older stages know too.
PRIORITIES = {
    "low": stage_pb2.PRIORITY_LOW,
    "normal": stage_pb2.PRIORITY_UNSPECIFIED,
    "high": stage_pb2.PRIORITY_HIGH,
}
MAX_SEED = 2**64 - 1
MAX_NUM_IMAGES = 1024
MAX_PREVIEW_INTERVAL_STEPS = 1000  # stages refuse more


@dataclass(frozen=True)
class Prompt:
    """One checked request. What was not given is not here and is left to the stages.

    Attributes:
        texts: What text encoders are told beside the prompt, by the names of `EncodeRequest`.
        seeds: One for each image.
        arguments: Settings of generators and decoders, by the names of `generate`.
        priority: One of `PRIORITIES`.
        preview_interval_steps: 0 for no previews.
    """

    prompt: str | None
    seeds: tuple[int, ...]
    texts: Mapping[str, Value] = field(default_factory=dict)
    arguments: Mapping[str, Value] = field(default_factory=dict)
    priority: str = "normal"
    preview_interval_steps: int = 0

    @property
    def negative_prompt(self) -> str | None:
        """None where none was given, which in some families differs from an empty one."""
        text = self.texts.get("negative_prompt")
        return None if text is None else str(text)


def read(prompt: str | None, given: GenerateArguments) -> Prompt:
    """Sorts the settings of a request by whom they are for.

    Raises:
        InvalidArgumentError: There is no such setting, or seeds, priority or interval are none.
    """
    values = cast(
        dict[str, Value], {name: value for name, value in given.items() if value is not None}
    )
    for name, value in values.items():
        if name not in NAMES:
            raise refusal(name, value, f"only known settings: {', '.join(sorted(NAMES))}")
    priority = given.get("priority") or "normal"
    if priority not in PRIORITIES:
        raise refusal("priority", priority, ", ".join(PRIORITIES))
    interval = given.get("preview_interval_steps") or 0
    if not _is_whole(interval) or not 0 <= interval <= MAX_PREVIEW_INTERVAL_STEPS:
        allowed = f"1 to {MAX_PREVIEW_INTERVAL_STEPS}, or 0 for no previews"
        raise refusal("preview_interval_steps", interval, allowed)
    return Prompt(
        prompt=prompt,
        seeds=seeds_for(given.get("seed"), num_images=given.get("num_images")),
        texts={name: values[name] for name in TEXTS if name in values},
        arguments={
            name: value
            for name, value in values.items()
            if name not in TEXTS and name not in OF_THE_REQUEST
        },
        priority=priority,
        preview_interval_steps=interval,
    )


def seeds_for(seed: int | Sequence[int] | None, *, num_images: int | None) -> tuple[int, ...]:
    """Gives each image its seed.

    Args:
        seed: Of the first image, the others counting on from it modulo 2^64; or one for each; or
            None to draw the first.
        num_images: None for one, or as many as there are seeds.

    Raises:
        InvalidArgumentError: A seed or the number of images is outside its range.
    """
    listed = tuple(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else None
    if num_images is None:
        num_images = 1 if listed is None else len(listed)
    if not _is_whole(num_images) or not 1 <= num_images <= MAX_NUM_IMAGES:
        raise refusal("num_images", num_images, f"1 to {MAX_NUM_IMAGES}")
    if listed is not None and len(listed) != num_images:
        raise refusal("seed", list(listed), f"a whole number, or a list of {num_images}")
    first = secrets.randbits(64) if seed is None else seed
    for value in listed or (first,):
        if not _is_whole(value) or not 0 <= value <= MAX_SEED:
            raise refusal("seed", value, "0 to 2^64 - 1")
    if listed is not None:
        return listed
    assert isinstance(first, int), "checked above"
    return tuple((first + i) % (MAX_SEED + 1) for i in range(num_images))


def check(request: Prompt, chain: Chain) -> None:
    """Holds a request to what the stages of a chain take.

    Raises:
        InvalidArgumentError: A setting is outside its range, or no stage takes it.
    """
    _check_texts(request, chain)
    painters = [step.stage for step in chain.steps]
    sizes = [step.consumer.size_factor for step in chain.steps if step.consumer]
    for name, value in request.arguments.items():
        takers = arguments.takers(name, painters)
        if not takers:
            known = sorted({known for stage in painters for known in arguments.full_names(stage)})
            allowed = f"only settings that a stage takes: {', '.join(known) or 'none'}"
            raise refusal(name, value, allowed)
        prefixes = sorted({arguments.prefix_of(stage) for stage in takers})
        if len(prefixes) > 1:
            allowed = " or ".join(prefix + name for prefix in prefixes)
            raise refusal(name, value, f"as {allowed}, since several stages take it")
        for stage in takers:
            bare = name.removeprefix(prefixes[0])
            argument = next(a for a in stage.description.arguments if a.name == bare)
            multiple_of = argument.multiple_of
            # A stage that rounds sizes by itself takes any.
            rounds = multiple_of <= 1 or "use_resolution_binning" in arguments.full_names(stage)
            if name in ("height", "width") and not rounds:
                multiple_of = max([multiple_of, *sizes])
            check_setting(name, value, argument=argument, multiple_of=multiple_of)
    _check_pixels(request, chain)


def check_setting(name: str, value: Value, *, argument: Argument, multiple_of: int = 0) -> None:
    """Holds one setting to its range.

    Args:
        name: As the caller spells it.
        argument: What the stage says of it.
        multiple_of: 0 where any number does.

    Raises:
        InvalidArgumentError: It is outside its range, or of another type.
    """
    if argument.choices:
        if value not in argument.choices:
            raise refusal(name, value, ", ".join(argument.choices))
        return
    descriptor = arguments.kind_of(argument.name)
    if descriptor is not None and descriptor.cpp_type == descriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise refusal(name, value, "True or False")
        return
    if descriptor is not None and descriptor.cpp_type == descriptor.CPPTYPE_STRING:
        if not isinstance(value, str):
            raise refusal(name, value, "a text")
        return
    low = argument.minimum if argument.HasField("minimum") else -math.inf
    high = argument.maximum if argument.HasField("maximum") else math.inf
    whole = descriptor is not None and descriptor.cpp_type == descriptor.CPPTYPE_UINT32
    numbers = _numbers(value, length=argument.length)
    for number in [None] if numbers is None else numbers:
        right_type = _is_whole(number) if whole else _is_number(number)
        if (
            not right_type
            or not low <= float(number) <= high  # type: ignore[arg-type]  # also false of NaN
            or (multiple_of and float(number) % multiple_of)  # type: ignore[arg-type]
        ):
            raise refusal(name, value, allowed_range(argument, multiple_of=multiple_of))


def _numbers(value: object, *, length: int) -> list[object] | None:
    """The numbers that a setting is made of; None if they are not as many as they should be."""
    if not length:
        return [value]
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != length:
        return None
    return list(value)


def allowed_range(argument: Argument, *, multiple_of: int = 0) -> str:
    """Says in words which numbers an argument takes."""
    words = []
    if argument.HasField("minimum") and argument.HasField("maximum"):
        words.append(f"{argument.minimum:g} to {argument.maximum:g}")
    elif argument.HasField("minimum"):
        words.append(f"{argument.minimum:g} or more")
    elif argument.HasField("maximum"):
        words.append(f"up to {argument.maximum:g}")
    if multiple_of:
        words.append(f"a multiple of {multiple_of}")
    if argument.length:
        words.insert(0, f"{argument.length} numbers")
    return ", ".join(words) or "any"


def refusal(field: str, value: object, allowed: str) -> InvalidArgumentError:
    """Makes the error of a setting outside its range, in the words of the stages."""
    description = f"{field}: {value!r} is not allowed; allowed: {allowed}"
    return InvalidArgumentError(
        description,
        reason="BAD_FIELD",
        field_violations=(FieldViolation(field, description),),
    )


def _check_texts(request: Prompt, chain: Chain) -> None:
    if not chain.encoders:
        for name, text in {"prompt": request.prompt, **request.texts}.items():
            if text is not None:
                raise refusal(name, text, "none: this cascade takes no text")
        return
    if request.prompt is None:
        raise refusal("prompt", None, "any text, an empty one included")
    limit = _smallest(stage.description.max_prompt_bytes for stage in chain.encoders)
    for name, value in {"prompt": request.prompt, **request.texts}.items():
        taken = [
            argument
            for stage in chain.encoders
            for argument in stage.description.arguments
            if argument.name == name
        ]
        if not taken and name != "prompt":
            known = sorted({n for stage in chain.encoders for n in arguments.full_names(stage)})
            raise refusal(name, value, f"only what a text encoder takes: {', '.join(known)}")
        if isinstance(value, str) or name == "prompt" or name.startswith("negative_prompt"):
            _check_text(name, value, limit=limit)
        for argument in taken:
            check_setting(name, value, argument=argument)


def _check_text(name: str, text: object, *, limit: int) -> None:
    try:
        size = len(text.encode())  # type: ignore[attr-defined]
    except (UnicodeEncodeError, AttributeError):
        raise refusal(name, text, "text that UTF-8 can write") from None
    if limit and size > limit:
        raise refusal(name, f"{size} bytes", f"at most {limit} bytes of UTF-8")


def _check_pixels(request: Prompt, chain: Chain) -> None:
    for step in chain.steps:
        stages = [other.stage for other in chain.steps]
        given = arguments.values_for(step.stage, request.arguments, stages=stages)
        described = step.stage.description
        defaults = {argument.name: argument.default_number for argument in described.arguments}
        sides = [float(given.get(n) or defaults.get(n, 0)) for n in ("height", "width")]  # type: ignore[arg-type]
        pixels = sides[0] * sides[1]
        if described.max_pixels and pixels > described.max_pixels:
            allowed = f"height x width up to {described.max_pixels} pixels; this makes {pixels:.0f}"
            name = "height" if "height" in given else "width"
            value = int(given.get(name, 0))  # type: ignore[arg-type]
            raise refusal(arguments.prefix_of(step.stage) + name, value, allowed)


def _smallest(limits: Iterable[int]) -> int:
    """The smallest known limit; 0 stands for an unknown one, as in the messages."""
    return min(filter(None, limits), default=0)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
