"""Draws the latencies of a run into a PNG, SVG or PDF file.

Needs matplotlib, which the extra `train` brings. It keeps no state between drawings: no pyplot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carrara_services.bench.load import Record

SIZE_INCHES = (12.0, 4.5)
DOTS_PER_INCH = 150
LIGHT = 0.35  # opacity of the grid


def plot_latencies(records: Sequence[Record], *, class_names: Sequence[str], file: Path) -> Figure:
    """Left, which share of each class was painted within a latency; right, latency over the run.

    Args:
        class_names: Each has a colour of its own; one of which nothing was painted has no curve.
        file: Its suffix chooses the format.
    """
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    shares, course = figure.subplots(1, 2)
    for index, name in enumerate(class_names):
        own = [record for record in records if record.request.class_name == name]
        painted = [record for record in own if record.ending == "painted"]
        colour = f"C{index}"
        if painted:
            shares.ecdf([record.latency_seconds for record in painted], color=colour, label=name)
            _dots(course, painted, marker="o", color=colour, label=name)
        _dots(course, [r for r in own if r.ending != "painted"], marker="x", color=colour)
    shares.set_xlabel("seconds from due to painted")
    shares.set_ylabel("share of painted requests")
    course.set_xlabel("seconds after the begin, when due")
    course.set_ylabel("seconds from due to end")
    course.set_title("crosses: refused, timed out or failed", fontsize="small")
    for axes in (shares, course):
        axes.grid(alpha=LIGHT)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.savefig(file, dpi=DOTS_PER_INCH)
    return figure


def _dots(
    axes: Axes, records: Sequence[Record], *, marker: str, color: str, label: str | None = None
) -> None:
    if records:
        axes.scatter(
            [record.scheduled for record in records],
            [record.latency_seconds for record in records],
            marker=marker,
            s=16,
            color=color,
            label=label,
        )
