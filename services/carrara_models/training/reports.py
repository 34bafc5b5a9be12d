"""What a run tells of itself: progress, `scalars.jsonl`, TensorBoard and sample grids."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from carrara_models.training.sample_grids import make_grid, save_grid

if TYPE_CHECKING:
    from carrara_models.training.loop import Samples


class Reports:
    """Use as a context; of several processes, the one that does not write is silent."""

    def __init__(self, folder: Path, *, start: int, stop: int, writes: bool) -> None:
        """Opens nothing yet.

        Args:
            folder: Of the run.
            start: The step that the run begins or goes on with.
            stop: The step that it ends after.
            writes: Whether this process reports.
        """
        self._folder, self._start, self._stop, self._writes = folder, start, stop, writes
        # A bar where somebody looks, lines where a file does.
        self._bar: Progress | None = None
        if writes and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Reports:
        self._began = time.monotonic()
        if self._writes:
            self._scalars = (self._folder / "scalars.jsonl").open("a", buffering=1)
            # What an interrupted run wrote after its last snapshot is taken out again.
            self._board = SummaryWriter(self._folder / "tensorboard", purge_step=self._start + 1)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                "step", total=self._stop, completed=self._start, values=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._writes:
            self._scalars.close()
            self._board.close()

    def step(self, done: int) -> None:
        """Says that `done` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def scalars(self, done: int, values: Mapping[str, float]) -> None:
        """Reports numbers measured after `done` steps."""
        if not self._writes or not values:
            return
        seconds = time.monotonic() - self._began
        line = {"step": done, "seconds": round(seconds, 1), **values}
        self._scalars.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, done)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, values=shown)
        else:
            remaining = seconds / max(1, done - self._start) * (self._stop - done)
            print(
                f"step {done}/{self._stop}  {shown}  {remaining / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )

    def samples(self, done: int, samples: Samples) -> None:
        """Reports what the network can do after `done` steps; grids as `sample-STEP[-NAME].png`."""
        if not self._writes:
            return
        for name, pictures in samples.pictures.items():
            suffix = f"-{name}" if name else ""
            save_grid(pictures, self._folder / f"sample-{done:06d}{suffix}.png")
            self._board.add_image(name or "samples", make_grid(pictures), done, dataformats="HWC")
        self.scalars(done, samples.scalars)
