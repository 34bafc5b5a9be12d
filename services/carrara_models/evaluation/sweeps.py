"""Measures over settings: points side by side, as JSON and as a Markdown table.

It knows neither how pictures were painted nor how a measure is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from carrara_models.drawn_world.checker import ATTRIBUTES
from carrara_models.errors import BadFieldError, CheckpointError
from carrara_models.evaluation.estimates import Estimate
from carrara_models.evaluation.measures import Basis, Measure, require_comparable

HEADLINE = "all_right"  # the attribute whose interval stands in tables of several points
MAIN_SETTINGS = ("guidance_scale", "num_inference_steps", "scheduler")


@dataclass(frozen=True)
class SweepPoint:
    """A checkpoint under certain settings, and what its pictures measured.

    Attributes:
        settings: All that the stages take, by the names of `generate`.
        network_calls: Of all denoising stages, for one picture; some samplers make more of them
            than they have steps.
        seconds: That painting took.
    """

    checkpoint: str
    settings: Mapping[str, Any]
    network_calls: int
    seconds: float
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

    def says(self, name: str) -> Any:
        """A setting, or what else tells this point from others; None where it has none such."""
        if name in ("checkpoint", "network_calls"):
            return getattr(self, name)
        return self.settings.get(name)


def keys_of(points: Sequence[SweepPoint]) -> list[str]:
    """The keys that any point has, in the order of their first appearance."""
    return list(dict.fromkeys(measure.key for point in points for measure in point.measures))


def differing(points: Sequence[SweepPoint]) -> list[str]:
    """What tells the points apart: "checkpoint" and names of settings."""
    names = ["checkpoint", *MAIN_SETTINGS]
    names += sorted({name for point in points for name in point.settings} - {*names})
    return [name for name in names if any(p.says(name) != points[0].says(name) for p in points)]


def to_json(points: Sequence[SweepPoint]) -> dict[str, Any]:
    """An object for `json.dumps`: the basis of every key once, then the points.

    Raises:
        ContractError: Two points' numbers are not comparable.
    """
    require_comparable(measure for point in points for measure in point.measures)
    return {
        "bases": {
            measure.key: measure.basis.to_json() for point in points for measure in point.measures
        },
        "points": [
            {
                "checkpoint": point.checkpoint,
                "settings": dict(point.settings),
                "network_calls": point.network_calls,
                "seconds": round(point.seconds, 1),
                "measures": {
                    measure.key: {
                        **asdict(measure.estimate),
                        "floor": measure.floor,
                        "ceiling": measure.ceiling,
                        "notes": list(measure.notes),
                    }
                    for measure in point.measures
                },
            }
            for point in points
        ],
    }


def from_json(document: Mapping[str, Any]) -> list[SweepPoint]:
    """The points of an object of `to_json`; what else it holds is left aside.

    Raises:
        CheckpointError: It is no such object.
    """
    try:
        bases = {key: Basis.from_json(basis) for key, basis in document["bases"].items()}
        return [
            SweepPoint(
                checkpoint=point["checkpoint"],
                settings=point["settings"],
                network_calls=point["network_calls"],
                seconds=point["seconds"],
                measures=tuple(
                    Measure(
                        key,
                        Estimate(found["value"], found["low"], found["high"]),
                        bases[key],
                        floor=found["floor"],
                        ceiling=found["ceiling"],
                        notes=tuple(found["notes"]),
                    )
                    for key, found in point["measures"].items()
                ),
            )
            for point in document["points"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"It is no report of measures: {error!r}.") from error


def to_markdown(points: Sequence[SweepPoint]) -> str:
    """A table with a line per point; then floors, ceilings and bases.

    A single point has a line per measure, and checkpoints of one point each have a column each.

    Raises:
        ContractError: Two points' numbers are not comparable.
    """
    require_comparable(measure for point in points for measure in point.measures)
    if len(points) == 1:
        rows = _measures_of(points[0])
    elif len({point.checkpoint for point in points}) == len(points):
        rows = _side_by_side(points)
    else:
        rows = _points(points)
    aligned = ["---", *("---:" for _ in rows[0][1:])]
    lines = [_row(cells) for cells in [rows[0], aligned, *rows[1:]]]
    return "\n".join([*lines, "", *_remarks(points)])


def _measures_of(point: SweepPoint) -> list[list[str]]:
    rows = [["measure", "score", "95 % interval", "floor", "ceiling"]]
    for measure in point.measures:
        low, high = measure.estimate.low, measure.estimate.high
        rows.append(
            [
                measure.key,
                _number(measure, measure.estimate.value),
                f"{_number(measure, low)} to {_number(measure, high)}",
                *(
                    "-" if x is None else _number(measure, x)
                    for x in (measure.floor, measure.ceiling)
                ),
            ]
        )
    return rows


def _points(points: Sequence[SweepPoint]) -> list[list[str]]:
    keys = keys_of(points)
    names = differing(points) or ["checkpoint"]
    if any(point.network_calls != points[0].network_calls for point in points):
        names.append("network_calls")
    rows = [[*names, *keys]]
    for point in points:
        found = {measure.key: measure for measure in point.measures}
        settings = [_setting(point.says(name)) for name in names]
        rows.append([*settings, *(_cell(found[key]) if key in found else "-" for key in keys)])
    return rows


def _side_by_side(points: Sequence[SweepPoint]) -> list[list[str]]:
    rows = [["", *(point.checkpoint for point in points)]]
    for name in differing(points)[1:]:
        rows.append([name, *(_setting(point.says(name)) for point in points)])
    if any(point.network_calls != points[0].network_calls for point in points):
        rows.append(["network_calls", *(str(point.network_calls) for point in points)])
    found = [{measure.key: measure for measure in point.measures} for point in points]
    for key in keys_of(points):
        cells = [_with_interval(each[key]) if key in each else "-" for each in found]
        rows.append([key, *cells])
    return rows


def _remarks(points: Sequence[SweepPoint]) -> list[str]:
    told_apart = differing(points)
    common = {"checkpoint": points[0].checkpoint} | dict(points[0].settings)
    shared = ", ".join(
        f"{name} {_setting(value)}" for name, value in common.items() if name not in told_apart
    )
    bases: dict[str, list[str]] = {}
    for measure in (measure for point in points for measure in point.measures):
        basis = f"{measure.basis.pictures} pictures against {measure.basis.against}"
        keys = bases.setdefault(basis, [])
        if measure.key not in keys:
            keys.append(measure.key)
    notes = dict.fromkeys(
        f"- {measure.key}: {note}"
        for point in points
        for measure in point.measures
        for note in measure.notes
    )
    lines = [f"- settings: {shared}"]
    if len(points) > 1:
        lines += ["- in parentheses: 95 % intervals", *_bounds(points)]
    return [*lines, *(f"- {', '.join(keys)}: {basis}" for basis, keys in bases.items()), *notes]


def _bounds(points: Sequence[SweepPoint]) -> list[str]:
    """Ceilings, which all points of a checkpoint share, and of each key the highest floor."""
    floors: dict[str, tuple[float, Measure]] = {}
    ceilings: dict[str, list[str]] = {}
    for point in points:
        for measure in point.measures:
            if measure.floor is not None:
                highest, _ = floors.get(measure.key, (measure.floor, measure))
                floors[measure.key] = max(highest, measure.floor), measure
        told = ", ".join(
            f"{measure.key} {_number(measure, measure.ceiling)}"
            for measure in point.measures
            if measure.ceiling is not None
        )
        of = ceilings.setdefault(told, [])
        if point.checkpoint not in of:
            of.append(point.checkpoint)
    ceilings.pop("", None)
    lines = []
    if floors:
        told = ", ".join(f"{key} {_number(of, floor)}" for key, (floor, of) in floors.items())
        lines.append(f"- highest floors: {told}")
    for told, of in ceilings.items():
        whose = "" if len(ceilings) == 1 else f" of {', '.join(of)}"
        lines.append(f"- ceilings{whose}: {told}")
    return lines


def _cell(measure: Measure) -> str:
    if measure.key in ATTRIBUTES and measure.key != HEADLINE:
        return _number(measure, measure.estimate.value)
    return _with_interval(measure)


def _with_interval(measure: Measure) -> str:
    value, low, high = (
        _number(measure, each)
        for each in (measure.estimate.value, measure.estimate.low, measure.estimate.high)
    )
    return f"{value} ({low} to {high})"


def _number(measure: Measure, value: float) -> str:
    return f"{100 * value:.1f} %" if measure.key in ATTRIBUTES else f"{value:.4g}"


def _setting(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
