"""What a caller asks for, held to what the stages say that they take, before any compute."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from carrara.chain import Chain
from carrara.exceptions import FieldViolation, InvalidArgumentError
from carrara.v1.stage_pb2 import Argument

MAX_SEED = 2**64 - 1
MAX_NUM_IMAGES = 1024

_WHOLE_NUMBERS = frozenset({"num_inference_steps", "height", "width"})


@dataclass(frozen=True)
class Prompt:
    """One checked request. What is None was not given and is left to the stages.

    Attributes:
        seeds: One for each image.
    """

    prompt: str | None
    negative_prompt: str | None
    seeds: tuple[int, ...]
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    height: int | None = None
    width: int | None = None

    @property
    def arguments(self) -> dict[str, int | float | str]:
        """The settings that were given, by the names of `carrara.v1.Arguments`."""
        names = ("num_inference_steps", "guidance_scale", "scheduler", "height", "width")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


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
    taken = {
        argument.name: argument
        for stage in reversed(chain.stages)  # so that the first stage's word counts
        for argument in stage.description.arguments
    }
    sizes = [step.consumer.size_factor for step in chain.steps if step.consumer]
    for name, value in request.arguments.items():
        if name not in taken:
            known = ", ".join(sorted(taken)) or "none"
            raise refusal(name, value, f"only settings that a stage takes: {known}")
        multiple_of = taken[name].multiple_of
        if name in ("height", "width"):
            multiple_of = max([multiple_of, *sizes])
        check_setting(name, value, argument=taken[name], multiple_of=multiple_of)
    _check_pixels(request, chain, taken)


def check_setting(
    name: str, value: int | float | str, *, argument: Argument, multiple_of: int = 0
) -> None:
    """Holds one setting to its range.

    Args:
        argument: What the stage says of it.
        multiple_of: 0 where any number does.

    Raises:
        InvalidArgumentError: It is outside its range, or of another type.
    """
    if argument.choices:
        if value not in argument.choices:
            raise refusal(name, value, ", ".join(argument.choices))
        return
    low = argument.minimum if argument.HasField("minimum") else -math.inf
    high = argument.maximum if argument.HasField("maximum") else math.inf
    right_type = _is_whole(value) if name in _WHOLE_NUMBERS else _is_number(value)
    if (
        not right_type
        or not low <= float(value) <= high  # also false of NaN
        or (multiple_of and float(value) % multiple_of)
    ):
        raise refusal(name, value, allowed_range(argument, multiple_of=multiple_of))


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
        for field in ("prompt", "negative_prompt"):
            if getattr(request, field) is not None:
                raise refusal(field, getattr(request, field), "none: this cascade takes no text")
        return
    if request.prompt is None:
        raise refusal("prompt", None, "any text, an empty one included")
    limit = _smallest(stage.description.max_prompt_bytes for stage in chain.encoders)
    for field in ("prompt", "negative_prompt"):
        text = getattr(request, field)
        if text is None:
            continue
        try:
            size = len(text.encode())
        except (UnicodeEncodeError, AttributeError):
            raise refusal(field, text, "text that UTF-8 can write") from None
        if limit and size > limit:
            raise refusal(field, f"{size} bytes", f"at most {limit} bytes of UTF-8")


def _check_pixels(request: Prompt, chain: Chain, taken: dict[str, Argument]) -> None:
    height, width = (
        getattr(request, name) or (taken[name].default_number if name in taken else 0)
        for name in ("height", "width")
    )
    limit = _smallest(step.stage.description.max_pixels for step in chain.steps)
    if limit and height * width > limit:
        allowed = f"height x width up to {limit} pixels; this makes {height * width:.0f}"
        name, value = ("height", height) if request.height else ("width", width)
        raise refusal(name, int(value), allowed)


def _smallest(limits: Iterable[int]) -> int:
    """The smallest known limit; 0 stands for an unknown one, as in the messages."""
    return min(filter(None, limits), default=0)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
