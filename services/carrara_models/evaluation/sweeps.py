"""Measures over settings: points side by side, as JSON and as a Markdown table.

It knows neither how pictures were painted nor how a measure is made.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from carrara_models.errors import BadFieldError
from carrara_models.evaluation.measures import Measure, require_comparable


@dataclass(frozen=True)
class SweepPoint:
    """Settings, and what their pictures measured."""

    guidance_scale: float
    num_inference_steps: int
    scheduler: str
    measures: tuple[Measure, ...]

    def measure(self, key: str) -> Measure:
        """The measure of this key.

        Raises:
            BadFieldError: There is none; the message lists those there are.
        """
        found = {measure.key: measure for measure in self.measures}
        if key not in found:
            raise BadFieldError("key", key, ", ".join(found) or "nothing was measured")
        return found[key]


def keys_of(points: Sequence[SweepPoint]) -> list[str]:
    """The keys that any point has, in the order of their first appearance."""
    return list(dict.fromkeys(measure.key for point in points for measure in point.measures))


def to_json(points: Sequence[SweepPoint]) -> dict[str, Any]:
    """An object for `json.dumps`: the basis of every key once, then the points.

    Raises:
        ContractError: Two points' numbers are not comparable.
    """
    require_comparable(measure for point in points for measure in point.measures)
    return {
        "bases": {
            measure.key: asdict(measure.basis) for point in points for measure in point.measures
        },
        "points": [
            {
                "guidance_scale": point.guidance_scale,
                "num_inference_steps": point.num_inference_steps,
                "scheduler": point.scheduler,
                "measures": {
                    measure.key: asdict(measure.estimate) | {"notes": list(measure.notes)}
                    for measure in point.measures
                },
            }
            for point in points
        ],
    }


def to_markdown(points: Sequence[SweepPoint]) -> str:
    """A table with a line per point; below it what each column was measured with, and the notes.

    Raises:
        ContractError: Two points' numbers are not comparable.
    """
    require_comparable(measure for point in points for measure in point.measures)
    keys = keys_of(points)
    header = ["guidance_scale", "num_inference_steps", "scheduler", *keys]
    lines = [_row(header), _row(["---:", "---:", "---", *("---:" for _ in keys)])]
    for point in points:
        found = {measure.key: measure.estimate for measure in point.measures}
        cells = [
            f"{e.value:.4g} ({e.low:.4g} to {e.high:.4g})" if (e := found.get(key)) else "-"
            for key in keys
        ]
        settings = [f"{point.guidance_scale:g}", f"{point.num_inference_steps}", point.scheduler]
        lines.append(_row([*settings, *cells]))
    remarks = {
        measure.key: f"- {measure.key}: {measure.basis.pictures} pictures against "
        f"{measure.basis.against}; 95 % intervals in parentheses"
        for point in points
        for measure in point.measures
    }
    notes = dict.fromkeys(
        f"- {measure.key}: {note}"
        for point in points
        for measure in point.measures
        for note in measure.notes
    )
    return "\n".join([*lines, "", *remarks.values(), *notes])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
