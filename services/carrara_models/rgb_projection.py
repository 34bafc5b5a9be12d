"""What previews of latents are made with: a map from latents to colours, kept in `carrara.json`.

How it is fitted stands in `carrara_models.training.previews`, how it is used in
`carrara_models.denoising.previews`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carrara_models.errors import CheckpointError

RGB_PROJECTION = "rgb_projection"  # the entry's name

Colours = tuple[float, float, float]


@dataclass(frozen=True)
class RgbProjection:
    """A linear projection of each latent cell to a colour, by what the whole picture is like.

    With the C channels' means over the picture, and a 1 behind them, as `means` [C + 1], the
    projection of a picture is the sum of `weights[:, i]` times `means[i]`, [2C + 1, 3]: its first C
    rows are weights of a cell's channels, the others make the ground that all cells share, of
    `means` again. It depends on the means because an autoencoder's group norms see the whole
    picture: the same numbers in a cell stand for different colours in different pictures.

    The latents are those that generators work with and hand on, scaled and shifted; the colours are
    in [-1, 1].

    Attributes:
        weights: [2C + 1][C + 1][3].
        space: Fingerprint of the autoencoder that it was fitted to; "" where that is not known.
    """

    weights: tuple[tuple[Colours, ...], ...]
    space: str = ""

    @property
    def channels(self) -> int:
        """C, of the latents."""
        return len(self.weights) // 2

    def written(self) -> dict[str, Any]:
        """The entry of `carrara.json`."""
        return {"space": self.space, "weights": self.weights}


def read_projection(entry: Any, *, file: Path) -> RgbProjection | None:
    """Reads the entry of a `carrara.json`; None where it has none.

    Raises:
        CheckpointError: It is no projection.
    """
    if entry is None:
        return None
    if isinstance(entry, dict) and isinstance(entry.get("space"), str):
        weights = _frozen(entry.get("weights"))
        projection = RgbProjection(weights, entry["space"])
        channels = projection.channels
        rows = {len(row) for row in weights}
        if channels and len(weights) == 2 * channels + 1 and rows == {channels + 1}:
            return projection
    raise CheckpointError(
        f"{file}: {RGB_PROJECTION} is not weights [2C + 1][C + 1][3] and space; "
        "`carrara train previews` writes it."
    )


def _frozen(table: Any) -> tuple[tuple[Colours, ...], ...]:
    """A table of colours; an empty one if it is something else."""
    try:
        weights = tuple(
            tuple((float(red), float(green), float(blue)) for red, green, blue in row)
            for row in table
        )
    except (TypeError, ValueError):
        return ()
    numbers = (number for row in weights for colours in row for number in colours)
    return weights if all(map(math.isfinite, numbers)) else ()
