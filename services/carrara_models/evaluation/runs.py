"""From captions and settings to points of a sweep; a painter makes the pictures.

It knows neither how a painter paints nor how a measure is made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara_models.errors import BadFieldError
from carrara_models.evaluation.sweeps import SweepPoint
from carrara_models.evaluation.yardstick import Yardstick

Settings = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Painted:
    """Pictures of captions, in their order.

    Attributes:
        pictures: uint8 [N, H, W, 3].
        settings: All that the stages took, defaults included.
        network_calls: Of all denoising stages, for one picture.
        seconds: That painting took.
    """

    pictures: NDArray[np.uint8]
    settings: Settings
    network_calls: int
    seconds: float


Painter = Callable[[Sequence[str], Settings], Painted]
"""Captions, and the settings that differ from the stages' defaults."""


def try_out(painter: Painter, caption: str, sweep: Sequence[Settings]) -> tuple[int, int]:
    """Paints one picture with each settings, so that a refusal comes before all others are painted.

    Returns:
        Height and width of all of them, in pixels.

    Raises:
        BadFieldError: They are of several sizes, which no measure compares.
    """
    shapes = [painter([caption], settings).pictures.shape for settings in sweep]
    sizes = list(dict.fromkeys((height, width) for _, height, width, _ in shapes))
    if len(sizes) > 1:
        found = ", ".join(f"{height} x {width}" for height, width in sizes)
        raise BadFieldError("pictures", found, "one size in all points of a sweep")
    return sizes[0]


def measure_sweep(
    painter: Painter,
    captions: Sequence[str],
    sweep: Sequence[Settings],
    *,
    yardstick: Yardstick,
    checkpoint: str,
) -> Iterator[SweepPoint]:
    """Paints all captions with each settings, and measures.

    Args:
        yardstick: Of these captions, and prepared.
        checkpoint: What the points are said to be of.
    """
    for settings in sweep:
        painted = painter(captions, settings)
        yield SweepPoint(
            checkpoint=checkpoint,
            settings=painted.settings,
            network_calls=painted.network_calls,
            seconds=painted.seconds,
            measures=yardstick.measure(painted.pictures),
        )
