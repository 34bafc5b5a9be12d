"""Draws measures over settings, into PNG, SVG or PDF files.

Needs matplotlib, which the extra `train` brings. It keeps no state between drawings: no pyplot.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carrara_models.evaluation.estimates import Estimate
from carrara_models.evaluation.measures import require_comparable
from carrara_models.evaluation.sweeps import SweepPoint

SIZE_INCHES = (6.0, 4.5)
DOTS_PER_INCH = 150
LIGHT = 0.35  # opacity of intervals


def plot_trade_off(
    points: Sequence[SweepPoint], *, fid: str, clip_score: str, file: Path
) -> Figure:
    """FID over CLIP score, one curve of rising guidance per scheduler and number of steps.

    This is the figure of Saharia et al. 2022 (Imagen): the lower right is better.

    Args:
        fid: Key of the measure upwards.
        clip_score: Key of the measure to the right.
        file: Its suffix chooses the format.

    Raises:
        BadFieldError: A point lacks one of the keys.
        ContractError: Two points' numbers are not comparable.
    """
    figure, axes = _canvas(points, across=clip_score, upwards=fid)
    curves = _curves(points, by=lambda point: (point.scheduler, point.num_inference_steps))
    for (scheduler, steps), curve in curves.items():
        curve = sorted(curve, key=lambda point: point.guidance_scale)
        across = [point.measure(clip_score).estimate for point in curve]
        upwards = [point.measure(fid).estimate for point in curve]
        _draw(
            axes,
            [e.value for e in across],
            upwards,
            label=f"{scheduler}, {steps} steps",
            spread=_ends(across),
        )
        for point, x, y in zip(curve, across, upwards, strict=True):
            axes.annotate(
                f"{point.guidance_scale:g}",
                (x.value, y.value),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize="small",
            )
    axes.set_title("numbers at points: guidance_scale", fontsize="small")
    return _finish(figure, axes, file)


def plot_over_steps(points: Sequence[SweepPoint], *, key: str, file: Path) -> Figure:
    """A measure over the number of steps, one curve per scheduler and guidance scale.

    Args:
        key: Of the measure.
        file: Its suffix chooses the format.

    Raises:
        BadFieldError: A point lacks the key.
        ContractError: Two points' numbers are not comparable.
    """
    figure, axes = _canvas(points, across="", upwards=key)
    curves = _curves(points, by=lambda point: (point.scheduler, point.guidance_scale))
    for (scheduler, guidance), curve in curves.items():
        curve = sorted(curve, key=lambda point: point.num_inference_steps)
        _draw(
            axes,
            [point.num_inference_steps for point in curve],
            [point.measure(key).estimate for point in curve],
            label=f"{scheduler}, guidance_scale {guidance:g}",
        )
    axes.set_xlabel("num_inference_steps")
    return _finish(figure, axes, file)


def _canvas(points: Sequence[SweepPoint], *, across: str, upwards: str) -> tuple[Figure, Axes]:
    keys = [key for key in (across, upwards) if key]
    require_comparable(point.measure(key) for point in points for key in keys)
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for key, label in ((across, axes.set_xlabel), (upwards, axes.set_ylabel)):
        if key:
            label(f"{key} ({points[0].measure(key).basis.pictures} pictures)")
    axes.grid(alpha=LIGHT)
    return figure, axes


def _curves(
    points: Sequence[SweepPoint], *, by: Callable[[SweepPoint], tuple[str, float]]
) -> dict[tuple[str, float], list[SweepPoint]]:
    curves: dict[tuple[str, float], list[SweepPoint]] = {}
    for point in points:
        curves.setdefault(by(point), []).append(point)
    return curves


def _draw(
    axes: Axes,
    across: Sequence[float],
    upwards: Sequence[Estimate],
    *,
    label: str,
    spread: tuple[list[float], list[float]] | None = None,
) -> None:
    drawn = axes.errorbar(
        across,
        [e.value for e in upwards],
        xerr=spread,
        yerr=_ends(upwards),
        marker="o",
        markersize=4,
        capsize=2,
        label=label,
    )
    for bars in drawn.lines[2]:
        bars.set_alpha(LIGHT)


def _ends(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    """How far the intervals reach below the values, and above."""
    return [e.value - e.low for e in estimates], [e.high - e.value for e in estimates]


def _finish(figure: Figure, axes: Axes, file: Path) -> Figure:
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=DOTS_PER_INCH)
    return figure
