"""What `carrara evaluate` prints and draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from carrara_models.drawn_world.checker import ATTRIBUTES
from carrara_models.errors import BadFieldError, CheckpointError
from carrara_models.evaluation.sweeps import HEADLINE, SweepPoint, from_json, keys_of, to_json
from carrara_models.weights import read_json
from carrara_services.plot_files import check_plot_file


def report(
    points: Sequence[SweepPoint], *, checkpoint: str, seed: int, **told: Any
) -> dict[str, Any]:
    """Makes the object that `--json` prints.

    Args:
        told: What else stands at its top.
    """
    document = {"checkpoint": checkpoint, "seed": seed, **told, **to_json(points)}
    if len(points) == 1:
        (point,) = points
        document["settings"] = {**point.settings, "seed": seed}
        document["scores"] = {
            measure.key: {
                "score": measure.estimate.value,
                "floor": measure.floor,
                "ceiling": measure.ceiling,
            }
            for measure in point.measures
            if measure.key in ATTRIBUTES
        }
    return document


def read_reports(files: Sequence[Path]) -> list[SweepPoint]:
    """All points of reports as `--json` prints them.

    Raises:
        CheckpointError: A file cannot be read, or is no report.
    """
    points: list[SweepPoint] = []
    for file in files:
        try:
            points += from_json(read_json(file))
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from error
    return points


def check_plot(file: Path, *, points: int) -> None:
    """Refuses, before anything is painted, what could not be drawn afterwards.

    Raises:
        BadFieldError: The file is of no known kind, or the points are too few.
        MissingExtraError: matplotlib is missing.
    """
    check_plot_file(file, drawn_by="carrara_models.evaluation.plots")
    if points < 2:
        raise BadFieldError("plot", str(file), "with several values of a setting, or --compare")


def plot(points: Sequence[SweepPoint], file: Path) -> None:
    """Draws FID against CLIP score where guidance differs, else measures over network calls.

    Raises:
        ContractError: Two points' numbers are not comparable.
    """
    from carrara_models.evaluation.plots import plot_over_calls, plot_trade_off

    keys = keys_of(points)
    distances = [key for kind in ("fid_", "kid_") for key in keys if key.startswith(kind)]
    clip_scores = [key for key in keys if key.startswith("clip_score_")]
    if distances and clip_scores and _several(points, lambda p: p.settings.get("guidance_scale")):
        plot_trade_off(points, distance=distances[0], clip_score=clip_scores[0], file=file)
    else:
        headline = [key for key in keys if key not in ATTRIBUTES or key == HEADLINE]
        plot_over_calls(points, keys=headline, file=file)


def _several(points: Sequence[SweepPoint], value: Callable[[SweepPoint], Any]) -> bool:
    return len({value(point) for point in points}) > 1
