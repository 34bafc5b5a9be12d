"""Draws measures over settings, into PNG, SVG or PDF files.

Needs matplotlib, which the extra `train` brings. It keeps no state between drawings: no pyplot.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carrara_models.evaluation.estimates import Estimate
from carrara_models.evaluation.measures import require_comparable
from carrara_models.evaluation.sweeps import SweepPoint, differing

GUIDANCE, STEPS = "guidance_scale", "num_inference_steps"
SIZE_INCHES = (6.0, 4.5)
DOTS_PER_INCH = 150
LIGHT = 0.35  # opacity of intervals


def plot_trade_off(
    points: Sequence[SweepPoint], *, distance: str, clip_score: str, file: Path
) -> Figure:
    """FID over CLIP score along rising guidance, one curve for what else tells points apart.

    This is the figure of Saharia et al. 2022 (Imagen): the lower right is better.

    Args:
        distance: Key of the measure upwards: FID, or KID for few pictures.
        clip_score: Key of the measure to the right.
        file: Its suffix chooses the format.

    Raises:
        BadFieldError: A point lacks one of the keys.
        ContractError: Two points' numbers are not comparable.
    """
    figure, (axes,) = _canvas(points, keys=[distance])
    require_comparable(point.measure(clip_score) for point in points)
    for label, curve in _curves(points, along=GUIDANCE).items():
        curve = sorted(curve, key=_guidance)
        across = [point.measure(clip_score).estimate for point in curve]
        upwards = [point.measure(distance).estimate for point in curve]
        _draw(axes, [e.value for e in across], upwards, label=label, spread=_ends(across))
        for point, x, y in zip(curve, across, upwards, strict=True):
            axes.annotate(
                f"{_guidance(point):g}",
                (x.value, y.value),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize="small",
            )
    axes.set_xlabel(_named(points, clip_score))
    axes.set_title(f"numbers at points: {GUIDANCE}", fontsize="small")
    return _finish(figure, file)


def plot_over_calls(points: Sequence[SweepPoint], *, keys: Sequence[str], file: Path) -> Figure:
    """Measures over the network calls of a picture, a panel each, and a curve per scheduler.

    Args:
        keys: Of the measures.
        file: Its suffix chooses the format.

    Raises:
        BadFieldError: A point lacks a key.
        ContractError: Two points' numbers are not comparable.
    """
    figure, panels = _canvas(points, keys=keys)
    for axes, key in zip(panels, keys, strict=True):
        for label, curve in _curves(points, along=STEPS).items():
            curve = sorted(curve, key=lambda point: point.network_calls)
            _draw(
                axes,
                [point.network_calls for point in curve],
                [point.measure(key).estimate for point in curve],
                label=label,
            )
        axes.set_xlabel("network calls")
    return _finish(figure, file)


def _canvas(points: Sequence[SweepPoint], *, keys: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A panel for each key, which is named upwards."""
    require_comparable(point.measure(key) for point in points for key in keys)
    width, height = SIZE_INCHES
    figure = Figure(figsize=(width * len(keys), height), layout="constrained")
    panels = list(figure.subplots(1, len(keys), squeeze=False)[0])
    for axes, key in zip(panels, keys, strict=True):
        axes.set_ylabel(_named(points, key))
        axes.grid(alpha=LIGHT)
    return figure, panels


def _named(points: Sequence[SweepPoint], key: str) -> str:
    return f"{key} ({points[0].measure(key).basis.pictures} pictures)"


def _guidance(point: SweepPoint) -> float:
    return float(point.settings.get(GUIDANCE) or 0)


def _curves(points: Sequence[SweepPoint], *, along: str) -> dict[str, list[SweepPoint]]:
    """Points by what tells them apart, other than the setting along which a curve goes."""
    names = [name for name in differing(points) if name != along] or ["checkpoint"]
    curves: dict[str, list[SweepPoint]] = {}
    for point in points:
        says = [(name, point.says(name)) for name in names]
        label = ", ".join(
            str(value) if isinstance(value, str) else f"{name} {value}" for name, value in says
        )
        curves.setdefault(label, []).append(point)
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


def _finish(figure: Figure, file: Path) -> Figure:
    for axes in figure.axes:
        axes.legend(fontsize="small")
    figure.savefig(file, dpi=DOTS_PER_INCH)
    return figure
