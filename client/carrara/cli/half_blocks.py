"""Pictures in a terminal: each character is two pixels, one above the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from rich.color import Color, ColorType
from rich.color_triplet import ColorTriplet
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.style import Style

UPPER_HALF = "\u2580"
MAX_COLUMNS = 48  # of one picture: more is drawn slowly, and previews have few pixels
MIN_COLUMNS = 8
GAP = 1


def shows_pictures(console: Console) -> bool:
    """Whether a terminal has the colours for pictures."""
    return console.is_terminal and console.color_system in ("256", "truecolor")


class HalfBlocks:
    """Pictures side by side, as large as a terminal has room for; a `rich` renderable.

    Those that it has no room for are left out.
    """

    def __init__(self, pictures: Sequence[Image.Image], *, rows_below: int) -> None:
        """Takes RGB pictures.

        Args:
            rows_below: Rows of the terminal that are left for others.
        """
        self._pictures, self._rows_below = pictures, rows_below
        self._drawn: tuple[tuple[int, int], list[Segment]] | None = None  # and for which room

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        room = (options.max_width, max(1, console.height - self._rows_below))
        if self._drawn is None or self._drawn[0] != room:
            self._drawn = room, list(_draw(self._pictures, columns=room[0], rows=room[1]))
        yield from self._drawn[1]


def _draw(pictures: Sequence[Image.Image], *, columns: int, rows: int) -> Iterator[Segment]:
    count = min(len(pictures), max(1, (columns + GAP) // (MIN_COLUMNS + GAP)))
    width = min((columns + GAP) // count - GAP, MAX_COLUMNS)
    scaled = [_scaled(picture, columns=width, rows=rows) for picture in pictures[:count]]
    for row in range(max(len(picture) for picture in scaled)):
        for index, picture in enumerate(scaled):
            if index:
                yield Segment(" " * GAP)
            if row < len(picture):
                yield from map(_character, *picture[row].tolist())
            else:
                yield Segment(" " * picture.shape[2])
        yield Segment.line()


def _scaled(picture: Image.Image, *, columns: int, rows: int) -> np.ndarray:
    """A picture's pixels in pairs, [rows, 2, columns, 3], in its own proportions."""
    scale = min(columns / picture.width, 2 * rows / picture.height)
    width = max(1, round(picture.width * scale))
    height = max(2, 2 * round(picture.height * scale / 2))
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(height // 2, 2, width, 3)


def _character(upper: Sequence[int], lower: Sequence[int]) -> Segment:
    return Segment(UPPER_HALF, Style.from_color(_colour(upper), _colour(lower)))


def _colour(pixel: Sequence[int]) -> Color:
    # Without the name that `Color.from_rgb` would write for each.
    return Color("", ColorType.TRUECOLOR, triplet=ColorTriplet(*pixel))
