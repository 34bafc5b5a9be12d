"""The settings of a denoising job: their ranges, and how a request and the defaults settle them."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import diffusers

from carrara_models import limits
from carrara_models.checkpoints import Checkpoint
from carrara_models.contracts import Argument
from carrara_models.errors import BadFieldError, CheckpointError
from carrara_models.parts import DenoisingRequest, Texts

# Settings that several families take.
ETA = Argument("eta", minimum=0, maximum=1, default=0)
GUIDANCE_RESCALE = Argument("guidance_rescale", minimum=0, maximum=1, default=0)


@dataclass(frozen=True)
class Settings:
    """What a job runs with.

    Attributes:
        guidance_scale: 1 of a part that has no guidance.
        height: Pixels; None where the request's consumer decides it.
        width: Likewise.
    """

    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    height: int | None
    width: int | None


def settle(
    request: DenoisingRequest,
    *,
    defaults: Settings,
    height: int | None = None,
    width: int | None = None,
    multiple_of: int = 0,
) -> Settings:
    """Fills in what a request leaves open and checks it all.

    Args:
        defaults: Taken where the request says None.
        height: Taken where the defaults say None too.
        width: Taken where the defaults say None too.
        multiple_of: Of both sizes; 0 of a part that has no choice of size.

    Raises:
        BadFieldError: A setting is outside its range. Names of schedulers are not looked at here.
    """
    settings = Settings(
        num_inference_steps=_first(request.num_inference_steps, defaults.num_inference_steps),
        guidance_scale=_first(request.guidance_scale, defaults.guidance_scale),
        scheduler=_first(request.scheduler, defaults.scheduler),
        height=_first(request.height, defaults.height, height),
        width=_first(request.width, defaults.width, width),
    )
    steps, scale = settings.num_inference_steps, settings.guidance_scale
    if not limits.MIN_INFERENCE_STEPS <= steps <= limits.MAX_INFERENCE_STEPS:
        allowed = f"{limits.MIN_INFERENCE_STEPS} to {limits.MAX_INFERENCE_STEPS}"
        raise BadFieldError("num_inference_steps", steps, allowed)
    # Written so that NaN, which compares false with everything, is refused.
    if not limits.MIN_GUIDANCE_SCALE <= scale <= limits.MAX_GUIDANCE_SCALE:
        allowed = f"{limits.MIN_GUIDANCE_SCALE:g} to {limits.MAX_GUIDANCE_SCALE:g}; 0 to 1 is off"
        raise BadFieldError("guidance_scale", scale, allowed)
    if not multiple_of:
        for name in ("height", "width"):
            if getattr(request, name) is not None:
                raise BadFieldError(name, getattr(request, name), "nothing: it is not chosen here")
        return settings
    longest = limits.MAX_PIXELS // multiple_of
    for name, size in (("height", settings.height), ("width", settings.width)):
        if size % multiple_of or not multiple_of <= size <= longest:
            allowed = f"a multiple of {multiple_of} from {multiple_of} to {longest}"
            raise BadFieldError(name, size, allowed)
    if settings.height * settings.width > limits.MAX_PIXELS:
        name, other = (
            ("height", "width") if settings.height >= settings.width else ("width", "height")
        )
        rest = math.floor(limits.MAX_PIXELS / getattr(settings, other))
        allowed = f"at most {rest} beside a {other} of {getattr(settings, other)}"
        raise BadFieldError(
            name, getattr(settings, name), f"{allowed}, {limits.MAX_PIXELS} pixels in all"
        )
    return settings


def chosen(request: DenoisingRequest | Texts, argument: Argument) -> Any:
    """What a request says of one argument, or the argument's default.

    Raises:
        BadFieldError: It is outside its range.
    """
    value = getattr(request, argument.name)
    if value is None:
        return argument.default
    for number in value if argument.length else (value,):
        low = -math.inf if argument.minimum is None else argument.minimum
        high = math.inf if argument.maximum is None else argument.maximum
        if not low <= number <= high:
            raise BadFieldError(argument.name, value, f"{low:g} to {high:g}")
    return value


def pipeline_defaults(
    checkpoint: Checkpoint,
    *,
    scheduler: str,
    height: int | None = None,
    width: int | None = None,
    prefix: str = "",
    **others: Any,
) -> Settings:
    """The defaults of a stage: what `carrara.json` says, else those of the pipeline's call.

    Args:
        height: Where `carrara.json` says none.
        width: Likewise.
        prefix: Of this stage's arguments in the pipeline's call, such as "prior_".
        others: In place of what the pipeline's call has, where it calls them otherwise.
    """
    call = inspect.signature(getattr(diffusers, checkpoint.pipeline_class).__call__).parameters
    own = {
        name: others.get(name, call[prefix + name].default if prefix + name in call else 1)
        for name in ("num_inference_steps", "guidance_scale")
    }
    chosen = checkpoint.defaults
    return Settings(
        num_inference_steps=_first(chosen.num_inference_steps, own["num_inference_steps"]),
        guidance_scale=float(_first(chosen.guidance_scale, own["guidance_scale"])),
        scheduler=scheduler,
        height=chosen.height or height or None,
        width=chosen.width or width or None,
    )


def noise_level_argument(checkpoint: Checkpoint, *, maximum: int) -> Argument:
    """Timestep to which a low-resolution picture is noised; its default as those of a stage.

    Raises:
        CheckpointError: The checkpoint's own default is above the maximum.
    """
    call = inspect.signature(getattr(diffusers, checkpoint.pipeline_class).__call__).parameters
    default = _first(checkpoint.defaults.noise_level, min(call["noise_level"].default, maximum))
    if not 0 <= default <= maximum:
        raise CheckpointError(
            f"{checkpoint.path}: carrara.json has a noise_level of {default}; it has a range of "
            f"0 to {maximum}."
        )
    return Argument("noise_level", minimum=0, maximum=maximum, default=default, multiple_of=1)


def settings_arguments(
    defaults: Settings,
    *,
    schedulers: tuple[str, ...] = (),
    multiple_of: int = 0,
    min_inference_steps: int = limits.MIN_INFERENCE_STEPS,
    without: frozenset[str] = frozenset(),
) -> tuple[Argument, ...]:
    """The table of arguments that `Describe` answers with.

    Args:
        schedulers: Those that may be chosen; none where there is no choice.
        multiple_of: Of both sizes; 0 of a part that has no choice of size.
        min_inference_steps: Where the scheduler cannot do with one.
        without: Those that the part does not have, such as "guidance_scale".
    """
    longest = limits.MAX_PIXELS // multiple_of if multiple_of else 0
    sizes = (("height", defaults.height), ("width", defaults.width)) if multiple_of else ()
    arguments = (
        Argument(
            "num_inference_steps",
            minimum=min_inference_steps,
            maximum=limits.MAX_INFERENCE_STEPS,
            default=defaults.num_inference_steps,
        ),
        Argument(
            "guidance_scale",
            minimum=limits.MIN_GUIDANCE_SCALE,
            maximum=limits.MAX_GUIDANCE_SCALE,
            default=defaults.guidance_scale,
        ),
        *((Argument("scheduler", choices=schedulers),) if schedulers else ()),
        *(
            Argument(
                name, minimum=multiple_of, maximum=longest, default=default, multiple_of=multiple_of
            )
            for name, default in sizes
        ),
    )
    return tuple(argument for argument in arguments if argument.name not in without)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
