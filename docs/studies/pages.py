"""Writes what was measured into a page, between its two marks; the page keeps its words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"


def write_measured(page: Path, blocks: Iterable[str]) -> None:
    """Puts blocks of Markdown in place of those that stand between the marks.

    Raises:
        ValueError: The page does not have both marks once, in their order.
    """
    words = page.read_text(encoding="utf-8")
    if words.count(BEGIN) != 1 or words.count(END) != 1 or words.index(BEGIN) > words.index(END):
        raise ValueError(f"{page} does not hold {BEGIN} and, after it, {END}, each once")
    before, after = words.split(BEGIN)[0], words.split(END)[1]
    measured = "\n\n".join([BEGIN, *(block.strip() for block in blocks), END])
    page.write_text(before + measured + after, encoding="utf-8")


def shell(commands: Iterable[str]) -> str:
    """Commands as a block of Markdown."""
    return "\n".join(["```sh", *commands, "```"])


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys as a table of Markdown, which the keys head."""
    heads = list(rows[0])
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def told(report: Mapping[str, object], *, points: int, seconds: float, file: str) -> str:
    """What a reader of the numbers must know, of a report of `carrara evaluate`."""
    plural = "point" if points == 1 else "points"
    return (
        f"{points} {plural} of {report['captions']} captions, seed {report['seed']}; painting and "
        f"measuring took {seconds / 60:.0f} minutes, one CPU thread for torch; numerics: "
        f"{report['numerics']}. The numbers stand in [{file}]({file})."
    )
