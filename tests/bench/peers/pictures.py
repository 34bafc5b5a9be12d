"""Whether a contender paints what diffusers paints, before anybody asks how fast."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carrara_services.bench.cascade_target import CascadeTarget
from carrara_services.bench.load import Target
from carrara_services.bench.workloads import PaintRequest

# Levels of 255. Several rows at once round otherwise than one, and OpenVINO cuts fractions off
# where diffusers rounds; another seed, prompt or scheduler is tens of levels away everywhere.
MOST_ANYWHERE, MOST_ON_AVERAGE = 16, 1.0
MOST_ANYWHERE_FAST = 128  # of a cascade in fast numerics: in half precision edges move

Picture = NDArray[np.uint8]


class OtherPictureError(Exception):
    """A contender paints something else, or nothing; the message says what."""


@dataclass(frozen=True)
class Difference:
    """Of pictures from those of diffusers alone, in levels of 255."""

    anywhere: int
    on_average: float


async def paint_all(
    target: Target, requests: Sequence[PaintRequest], *, timeout_seconds: float
) -> list[Picture]:
    """Pictures in the order of their requests; those of a class at once, so that what batches does.

    Raises:
        OtherPictureError: One was not painted.
    """
    pictures: dict[int, Picture] = {}
    for name in dict.fromkeys(request.class_name for request in requests):
        own = [request for request in requests if request.class_name == name]
        outcomes = await asyncio.gather(
            *(target.paint(request, timeout_seconds=timeout_seconds) for request in own)
        )
        for request, outcome in zip(own, outcomes, strict=True):
            if outcome.picture is None:
                raise OtherPictureError(f"{name}: {outcome.ending}: {outcome.error}")
            pictures[request.index] = outcome.picture
    return [pictures[request.index] for request in requests]


def compare(
    pictures: Sequence[Picture],
    references: Sequence[Picture],
    *,
    target: Target,
    tolerance: float | None = None,
) -> Difference:
    """How far pictures are from those of diffusers alone.

    Args:
        target: Who painted them: a cascade that says it is exact has no tolerance.
        tolerance: On average, in place of `MOST_ON_AVERAGE`, and then any difference anywhere.

    Raises:
        OtherPictureError: Farther than they may be.
    """
    for picture, reference in zip(pictures, references, strict=True):
        if picture.shape != reference.shape:
            raise OtherPictureError(f"paints {picture.shape}, where diffusers {reference.shape}")
    apart = np.abs(np.stack(pictures).astype(np.int16) - np.stack(references))
    found = Difference(int(apart.max()), float(apart.mean()))
    of_cascade = isinstance(target, CascadeTarget)
    if isinstance(target, CascadeTarget) and target.exact:
        most = Difference(0, 0.0)
    elif tolerance is not None:
        most = Difference(255, tolerance)
    else:
        most = Difference(MOST_ANYWHERE_FAST if of_cascade else MOST_ANYWHERE, MOST_ON_AVERAGE)
    if found.anywhere > most.anywhere or found.on_average > most.on_average:
        raise OtherPictureError(
            f"its pictures differ from diffusers' by up to {found.anywhere} levels, "
            f"{found.on_average:.2f} on average; allowed: {most.anywhere} and {most.on_average:g}"
        )
    return found
