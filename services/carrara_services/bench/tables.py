"""Tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first column is words, the others mostly numbers."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_rich(self) -> RichTable:
        """For `rich.print`."""
        table = RichTable(title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        for index, head in enumerate(self.heads):
            table.add_column(head, justify="left" if index == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """Its title as a line of its own, then the table."""
        lines = [self.heads, ["---", *("---:" for _ in self.heads[1:])], *self.rows]
        return "\n".join([f"{self.title}:", "", *(f"| {' | '.join(line)} |" for line in lines)])
