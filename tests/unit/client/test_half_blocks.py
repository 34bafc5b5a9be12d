"""Pictures as a terminal's characters: right colours in the right places, and never too large."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from carrara.cli.half_blocks import MAX_COLUMNS, MIN_COLUMNS, UPPER_HALF, HalfBlocks, shows_pictures


def terminal(*, width: int = 80, height: int = 24, colours: str | None = "truecolor") -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system=colours,  # type: ignore[arg-type]
        width=width,
        height=height,
        legacy_windows=False,
        _environ={},
    )


def lines_of(pictures: list[Image.Image], console: Console, *, rows_below: int = 0) -> list[str]:
    console.print(HalfBlocks(pictures, rows_below=rows_below))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_each_character_is_a_pixel_above_another() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]], np.uint8)  # [2, 2, 3]
    picture = Image.fromarray(pixels).resize((MAX_COLUMNS, MAX_COLUMNS), Image.Resampling.NEAREST)
    lines = lines_of([picture], terminal(height=100))
    assert len(lines) == MAX_COLUMNS // 2
    red, blue = "\x1b[38;2;255;0;0;48;2;255;0;0m", "\x1b[38;2;0;0;255;48;2;0;0;255m"
    assert lines[0].startswith(red + UPPER_HALF)
    assert lines[-1].startswith(blue + UPPER_HALF)
    assert "\x1b[38;2;9;8;7;48;2;9;8;7m" + UPPER_HALF in lines[-1]
    assert all(line.count(UPPER_HALF) == MAX_COLUMNS for line in lines)


@pytest.mark.parametrize(
    ("size", "width", "height"),
    [((16, 16), 80, 24), ((128, 32), 20, 24), ((32, 128), 80, 12), ((1, 128), 80, 3)],
)
def test_a_picture_has_room_and_keeps_its_proportions(
    size: tuple[int, int], width: int, height: int
) -> None:
    lines = lines_of([Image.new("RGB", size)], terminal(width=width, height=height), rows_below=2)
    columns = {line.count(UPPER_HALF) for line in lines}
    assert len(columns) == 1
    (columns_of_all,) = columns
    assert columns_of_all <= min(width, MAX_COLUMNS)
    assert len(lines) <= height - 2
    if min(size) > 1:
        assert columns_of_all / (2 * len(lines)) == pytest.approx(size[0] / size[1], rel=0.3)


def test_several_stand_side_by_side_as_far_as_there_is_room() -> None:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    lines = lines_of(pictures, terminal(width=80))
    for colour in ("255;0;0", "0;255;0", "0;0;255"):
        assert f"38;2;{colour}" in lines[0]
    narrow = lines_of(pictures, terminal(width=2 * MIN_COLUMNS + 1))
    assert "38;2;0;255;0" in narrow[0]
    assert "38;2;0;0;255" not in narrow[0], "the third has no room"


def test_pictures_of_unequal_heights_stay_in_their_columns() -> None:
    pictures = [Image.new("RGB", (16, 4), "red"), Image.new("RGB", (16, 16), "blue")]
    lines = lines_of(pictures, terminal(width=41))
    assert lines[-1].startswith(" " * 21 + "\x1b[38;2;0;0;255")


@pytest.mark.parametrize(
    ("colours", "shows"), [("truecolor", True), ("256", True), ("standard", False), (None, False)]
)
def test_pictures_want_a_terminal_with_colours(colours: str | None, shows: bool) -> None:
    assert shows_pictures(terminal(colours=colours)) is shows
    assert not shows_pictures(Console(file=io.StringIO(), _environ={}))
