"""Rounds of several contenders side by side: medians, and ratios within each round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from carrara_services.bench.report import seconds
from carrara_services.bench.summaries import Quantiles, Summary
from carrara_services.bench.tables import Table

Rounds = Mapping[str, Sequence[Summary]]
"""A contender's name to its summary in each round; of equal lengths."""


@dataclass(frozen=True)
class Measured:
    """One number of a summary.

    Attributes:
        of: None where the run has no such number.
        more_is_better: Otherwise less is.
    """

    name: str
    of: Callable[[Summary], float | None]
    more_is_better: bool
    written: Callable[[float], str]


def _latency(name: str) -> Callable[[Summary], float | None]:
    def of(summary: Summary) -> float | None:
        quantiles: Quantiles | None = summary.all.latency
        return None if quantiles is None else float(getattr(quantiles, name))

    return of


MEASURED = (
    Measured("images/s", lambda summary: summary.images_per_second, True, "{:.3f}".format),
    Measured("in time/s", lambda summary: summary.images_in_time_per_second, True, "{:.3f}".format),
    Measured("p50 s", _latency("p50"), False, seconds),
    Measured("p95 s", _latency("p95"), False, seconds),
    Measured("p99 s", _latency("p99"), False, seconds),
)


def ratio(ours: Summary, theirs: Summary, *, measured: Measured) -> float | None:
    """How many times better ours is; None where either has no such number, or one is 0."""
    one, other = measured.of(ours), measured.of(theirs)
    if not one or not other:
        return None
    return one / other if measured.more_is_better else other / one


def compare(
    workload: str,
    rounds: Rounds,
    *,
    baseline: str,
    memory: Mapping[str, int | None],
    not_run: Mapping[str, str],
) -> Table:
    """Medians of all rounds; in parentheses, how many times better the baseline was.

    A ratio is the median of the ratios within each round, as a machine's speed changes from one
    round to the next.

    Args:
        baseline: The contender that the others are held against.
        memory: Bytes at most, of the contenders where it is known.
        not_run: Of contenders that could not be run, why.
    """
    count = len(rounds[baseline])
    told = "1 round" if count == 1 else f"{count} rounds"
    rows = []
    for name, summaries in rounds.items():
        cells = []
        for measured in MEASURED:
            values = [v for each in summaries if (v := measured.of(each)) is not None]
            ratios = [
                found
                for ours, theirs in zip(rounds[baseline], summaries, strict=True)
                if (found := ratio(ours, theirs, measured=measured)) is not None
            ]
            cell = measured.written(statistics.median(values)) if values else "-"
            if name != baseline and ratios:
                cell += f" ({statistics.median(ratios):.2f}x)"
            cells.append(cell)
        lost = [
            str(sum(each))
            for each in (
                [summary.all.refused for summary in summaries],
                [summary.all.timed_out for summary in summaries],
                [sum(summary.all.failed.values()) for summary in summaries],
            )
        ]
        peak = memory.get(name)
        rows.append((name, *cells, *lost, "-" if peak is None else f"{peak / 1e6:.0f}"))
    heads = [measured.name for measured in MEASURED]
    return Table(
        f"{workload}, medians of {told}; in parentheses, how many times better {baseline} is",
        ("contender", *heads, "refused", "timed out", "failed", "memory MB"),
        [
            *rows,
            *(
                (name, f"not run: {why}", *("" for _ in range(len(heads) + 3)))
                for name, why in not_run.items()
            ),
        ],
    )
