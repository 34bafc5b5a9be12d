"""What is asked for and when: classes of requests, their mix, arrivals; all follows from a seed.

It knows nothing of what paints. A sequence does not depend on its length: a longer one begins with
the requests of a shorter one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from carrara_models.drawn_world.captions import write_caption
from carrara_models.drawn_world.scenes import MAX_OBJECTS, sample_scene
from carrara_models.errors import BadFieldError

# Beside a workload's seed, so that each stream stays as it is when another one is read further.
_ARRIVALS, _MIX, _PROMPTS, _WARM_UP = range(4)

WorkloadName = Literal["uniform", "mixed", "poisson", "burst", "overload"]

GUIDED, UNGUIDED = 4.0, 1.0
OVERLOAD_FACTOR = 10


@dataclass(frozen=True)
class RequestClass:
    """Requests of equal settings.

    Attributes:
        name: Such as "20-step".
        share: Of all requests, in proportion to the other classes' shares; more than 0.
        settings: By the names of `generate`.
    """

    name: str
    share: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClosedLoop:
    """So many callers, each of whom sends its next request when the last has ended."""

    callers: int
    kind: Literal["closed"] = "closed"


@dataclass(frozen=True)
class PoissonArrivals:
    """Requests arrive independently of one another and of the answers, so many a second."""

    rate: float
    kind: Literal["poisson"] = "poisson"


@dataclass(frozen=True)
class Burst:
    """All requests arrive at once."""

    kind: Literal["burst"] = "burst"


Arrivals = ClosedLoop | PoissonArrivals | Burst


@dataclass(frozen=True)
class Workload:
    """What one run asks for.

    Attributes:
        name: Of the preset that it began with.
        classes: At least one; no two of one name.
        request_count: The run ends after so many; None where only time ends it.
        duration_seconds: No request arrives later; None where only the count ends the run.
        seed: Of classes, prompts and arrivals, and of picture 0; request i paints with `seed + i`.
    """

    name: str
    classes: tuple[RequestClass, ...]
    arrivals: Arrivals
    request_count: int | None
    duration_seconds: float | None
    seed: int

    def to_json(self) -> dict[str, Any]:
        """An object for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class PaintRequest:
    """One picture to paint.

    Attributes:
        index: Its place in the sequence, from 0; negative before the run, while all warms up.
        due_seconds: After the run's begin; None as soon as a caller is free.
    """

    index: int
    class_name: str
    prompt: str
    seed: int
    settings: Mapping[str, Any]
    due_seconds: float | None


@dataclass(frozen=True)
class Preset:
    """A workload but for its seed and what the command line changes.

    Attributes:
        callers: Of a closed loop; None of others.
        rate_factor: What a Poisson process multiplies the given rate by; None of others.
    """

    told: str
    classes: tuple[RequestClass, ...]
    callers: int | None = None
    rate_factor: float | None = None
    request_count: int | None = None
    duration_seconds: float | None = None


def _steps(count: int, *, guidance_scale: float = GUIDED) -> RequestClass:
    name = f"{count}-step" if guidance_scale > 1 else f"{count}-step-unguided"
    settings = {"num_inference_steps": count, "guidance_scale": guidance_scale}
    return RequestClass(name, settings=settings)


UNIFORM = (_steps(20),)
MIXED = tuple(
    _steps(count, guidance_scale=scale) for count in (4, 20, 50) for scale in (GUIDED, UNGUIDED)
)
PRESETS: Mapping[WorkloadName, Preset] = {
    "uniform": Preset("20 steps, 16 callers", UNIFORM, callers=16, request_count=64),
    "mixed": Preset(
        "4, 20 and 50 steps, with and without guidance, 16 callers",
        MIXED,
        callers=16,
        request_count=96,
    ),
    "poisson": Preset(
        "that mix, arriving at --rate for a minute", MIXED, rate_factor=1, duration_seconds=60
    ),
    "burst": Preset("64 requests of 20 steps at once", UNIFORM, request_count=64),
    "overload": Preset(
        "that mix, arriving at ten times --rate for 20 seconds",
        MIXED,
        rate_factor=OVERLOAD_FACTOR,
        duration_seconds=20,
    ),
}


def workload_of(
    name: WorkloadName,
    *,
    classes: Sequence[RequestClass] = (),
    callers: int | None = None,
    rate: float | None = None,
    request_count: int | None = None,
    duration_seconds: float | None = None,
    seed: int = 0,
) -> Workload:
    """Makes a workload from a preset and what is to differ.

    Args:
        name: Of `PRESETS`.
        classes: In place of the preset's.
        callers: Likewise, of a closed loop.
        rate: Requests a second, which Poisson arrivals need.
        request_count: In place of the preset's count and duration.
        duration_seconds: Likewise; with `request_count`, whichever ends first.
        seed: 0 or more.

    Raises:
        BadFieldError: A value is out of range, missing, or of another kind of arrivals.
    """
    preset = PRESETS[name]
    if len({each.name for each in classes}) < len(classes):
        raise BadFieldError("class", [each.name for each in classes], "each name once")
    if callers is not None and preset.callers is None:
        raise BadFieldError("callers", callers, f"nothing, as {name} is no closed loop")
    if rate is not None and preset.rate_factor is None:
        raise BadFieldError("rate", rate, f"nothing, as arrivals of {name} have no rate")
    if rate is None and preset.rate_factor is not None:
        raise BadFieldError("rate", rate, f"more than 0: {name} needs it")
    given = {"rate": rate, "duration_seconds": duration_seconds}
    for field_name, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            raise BadFieldError(field_name, value, "more than 0, and finite")
    arrivals: Arrivals = Burst()
    if preset.callers is not None:
        arrivals = ClosedLoop(callers or preset.callers)
    elif rate is not None and preset.rate_factor is not None:
        arrivals = PoissonArrivals(rate * preset.rate_factor)
    elif duration_seconds is not None:
        raise BadFieldError("duration_seconds", duration_seconds, "nothing, as all arrive at once")
    if request_count is None and duration_seconds is None:
        request_count, duration_seconds = preset.request_count, preset.duration_seconds
    return Workload(
        name,
        classes=tuple(classes) or preset.classes,
        arrivals=arrivals,
        request_count=request_count,
        duration_seconds=duration_seconds,
        seed=seed,
    )


def requests_of(workload: Workload) -> Iterator[PaintRequest]:
    """The requests of a run, in the order of their arrival.

    Those of a closed loop that only time ends do not end; whoever calls looks at the clock.
    """
    requests = _drawn(workload, stream=_MIX)
    if workload.duration_seconds is not None and not isinstance(workload.arrivals, ClosedLoop):
        last = workload.duration_seconds
        requests = itertools.takewhile(
            lambda request: request.due_seconds is not None and request.due_seconds < last, requests
        )
    return itertools.islice(requests, workload.request_count)


def warm_up_requests(workload: Workload, *, count: int) -> list[PaintRequest]:
    """Requests of all classes in turn, for before the run, whose prompts they do not have."""
    prompts = drawn_prompts(workload.seed, stream=_WARM_UP)
    classes = itertools.cycle(workload.classes)
    return [
        PaintRequest(
            index=index - count,
            class_name=kind.name,
            prompt=prompt,
            seed=index,
            settings=kind.settings,
            due_seconds=None,
        )
        for index, kind, prompt in zip(range(count), classes, prompts, strict=False)
    ]


def arrival_seconds(arrivals: Arrivals, *, seed: int) -> Iterator[float | None]:
    """When each request is due after the run's begin, without end; None when a caller is free."""
    match arrivals:
        case ClosedLoop():
            yield from itertools.repeat(None)
        case Burst():
            yield from itertools.repeat(0.0)
        case PoissonArrivals(rate=rate):
            rng = np.random.default_rng((seed, _ARRIVALS))
            due = 0.0
            while True:
                due += float(rng.exponential(1 / rate))
                yield due


def drawn_prompts(seed: int, *, stream: int = _PROMPTS) -> Iterator[str]:
    """Captions of scenes of the drawn world, without end.

    There are so many that texts are hardly ever met twice, as a text encoder would then take them
    from its cache.
    """
    rng = np.random.default_rng((seed, stream))
    while True:
        scene = sample_scene(rng, max_objects=MAX_OBJECTS)
        yield write_caption(scene, rng)


def sha256_of(requests: Iterable[PaintRequest]) -> str:
    """Of all that was asked for, in the sequence's order: equal for equal requests."""
    ordered = sorted(requests, key=lambda request: request.index)
    text = json.dumps([asdict(request) for request in ordered], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _drawn(workload: Workload, *, stream: int) -> Iterator[PaintRequest]:
    shares = np.array([each.share for each in workload.classes], dtype=np.float64)
    rng = np.random.default_rng((workload.seed, stream))
    arrivals = arrival_seconds(workload.arrivals, seed=workload.seed)
    prompts = drawn_prompts(workload.seed)
    for index, (due, prompt) in enumerate(zip(arrivals, prompts, strict=False)):
        kind = workload.classes[rng.choice(len(shares), p=shares / shares.sum())]
        yield PaintRequest(
            index=index,
            class_name=kind.name,
            prompt=prompt,
            seed=(workload.seed + index) % 2**64,
            settings=kind.settings,
            due_seconds=due,
        )
