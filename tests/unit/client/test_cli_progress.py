"""What `carrara generate` shows on its way: bars, and above them previews where it can."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageColor
from rich.console import Console
from toy_stages import ToyCascade

from carrara.cli import run
from carrara.cli.half_blocks import UPPER_HALF
from carrara.cli.progress import show_progress
from carrara.results import Event, Finished, GenerationResult, Preview, Progress, Queued


def intervals(toys: ToyCascade) -> list[int]:
    return [request.job.preview_interval_steps for request in toys.generator.requests]  # type: ignore[attr-defined]


@pytest.fixture
def a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("a_terminal")
@pytest.mark.parametrize(
    ("options", "interval"),
    [([], 0), (["--preview"], 1), (["--preview-interval-steps", "2"], 2)],
)
def test_a_terminal_shows_the_picture_under_way(
    toys: ToyCascade,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    interval: int,
) -> None:
    toys.generator.step_seconds = 0.15
    assert run(["generate", "a circle", "-o", str(tmp_path / "out.png"), *options]) == 0
    shown = capsys.readouterr()
    assert intervals(toys) == [interval]
    assert (UPPER_HALF in shown.err) is bool(interval)
    assert UPPER_HALF not in shown.out
    # In the end the bars stand alone: what was above them is wiped away.
    last = re.split(r"\x1b\[1A", shown.err)[-1]
    assert UPPER_HALF not in last
    assert "generator" in last


def test_what_is_no_terminal_is_told_so_and_stages_are_not_asked(
    toys: ToyCascade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "a circle", "-o", str(tmp_path / "out.png"), "--preview"]) == 0
    shown = capsys.readouterr().err
    assert "carrara: no previews: stderr is no terminal with 256 colours" in shown
    assert UPPER_HALF not in shown
    assert intervals(toys) == [0]


def test_an_interval_of_no_steps_gives_2(
    toys: ToyCascade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out.png")
    assert run(["generate", "a circle", "-o", output, "--preview-interval-steps", "0"]) == 2
    assert "--preview-interval-steps" in capsys.readouterr().err


def test_each_image_s_latest_preview_is_shown_until_the_end() -> None:
    console = Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        width=60,
        height=20,
        legacy_windows=False,
        _environ={},
    )
    result = object.__new__(GenerationResult)
    names = ["text-encoder", "generator"]

    def drawn() -> str:
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    def events() -> Iterator[Event]:
        yield Progress("text-encoder", 0, 1, 1, None)
        for step, colours in enumerate([("red", "blue"), ("lime", "white")], start=1):
            for image_index, colour in enumerate(colours):
                yield Progress("generator", 1, step, 2, image_index)
                picture = Image.new("RGB", (4, 4), colour)
                yield Preview("generator", 1, step, picture, image_index)
            # Rich draws by itself, some times in a second.
            wanted = [";".join(map(str, ImageColor.getrgb(colour))) for colour in colours]
            deadline = time.monotonic() + 20
            while not all(f"38;2;{colour};48" in drawn() for colour in wanted):
                assert time.monotonic() < deadline, f"{colours} are not shown"
                time.sleep(0.01)
        yield Finished(result)

    assert show_progress(events(), names=names, num_images=2, console=console) is result
    for frame in re.split(r"\x1b\[1A", drawn()):
        rows = [line for line in frame.splitlines() if UPPER_HALF in line]
        assert len(rows) <= console.height - len(names) - 1


def test_who_waits_in_a_line_is_told_where_and_how_long_until_its_first_step() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={})
    result = object.__new__(GenerationResult)

    def drawn() -> str:
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    def shown(words: str) -> None:
        """Rich draws by itself, some times in a second."""
        deadline = time.monotonic() + 20
        while words not in drawn():
            assert time.monotonic() < deadline, f"{words!r} is not shown"
            time.sleep(0.01)

    def events() -> Iterator[Event]:
        yield Queued("generator", 0, 1, 0, 0.0)
        assert drawn() == "", "who is next does not wait"
        yield Queued("generator", 0, 3, 0)
        shown("in place 3 of the line")
        yield Queued("generator", 0, 2, 0, 12_345.0)
        shown("in place 2 of the line, starts in about 12 s")
        yield Queued("generator", 0, 5, 1, 20_000.0)
        shown("2 images wait, the first in place 2 of the line, starts in about 12 s")
        yield Progress("generator", 0, 1, 2, 0)
        shown("in place 5 of the line, starts in about 20 s")
        yield Progress("generator", 0, 1, 2, 1)
        yield Queued("decoder", 1, 2, 0)
        shown("decoder")
        yield Finished(result)

    names = ["generator", "decoder"]
    assert show_progress(events(), names=names, num_images=2, console=console) is result
    end = drawn().rsplit("\x1b[2K", 1)[-1]
    assert "generator" in end
    assert "in place" not in end
    assert "decoder" not in end
