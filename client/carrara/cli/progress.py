"""How far the stages of one `carrara generate` are: a bar for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars

from carrara.results import Event, Finished, GenerationResult, Progress


def show_progress(
    events: Iterable[Event], *, names: Sequence[str], num_images: int
) -> GenerationResult:
    """Shows a bar for each stage on stderr from its first step on; gives the result."""
    bars = ProgressBars(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[int, Any] = {}
    steps: dict[tuple[int, int | None], int] = {}
    with ExitStack() as shown:
        for event in events:
            if isinstance(event, Finished):
                return event.result
            if not isinstance(event, Progress):
                continue
            if not tasks:  # not before: an error at once stands alone
                shown.enter_context(bars)
            index = event.stage_index
            if index not in tasks:
                images = 1 if event.image_index is None else num_images
                tasks[index] = bars.add_task(names[index], total=event.total_steps * images)
            steps[index, event.image_index] = event.step
            done = sum(step for (stage, _), step in steps.items() if stage == index)
            bars.update(tasks[index], completed=done)
    raise AssertionError("a stream ends with Finished or an exception")
