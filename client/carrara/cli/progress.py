"""How far the stages of one `carrara generate` are: bars, and above them the previews.

Behind a bar stands where the stage's jobs wait, if they do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from PIL import Image
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars

from carrara.cli.half_blocks import HalfBlocks
from carrara.results import Event, Finished, GenerationResult, Preview, Progress, Queued

# Who starts sooner does not wait.
_SHORT_WAIT_MS = 500.0


class _Shown(ProgressBars):
    """Bars, with a picture above them while there is one."""

    picture: HalfBlocks | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """As rich has it for those who want more than bars."""
        if self.picture is not None:
            yield self.picture
        yield from super().get_renderables()


def show_progress(
    events: Iterable[Event], *, names: Sequence[str], num_images: int, console: Console
) -> GenerationResult:
    """Shows a bar for each stage from its first step or wait on, and previews; gives the result.

    Args:
        names: Of the stages, in the order of the chain.
    """
    shown = _Shown(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[waiting]}"),
        console=console,
    )
    tasks: dict[int, Any] = {}
    steps: dict[tuple[int, int | None], int] = {}
    waiting: dict[tuple[int, int], Queued] = {}
    previews: dict[int, Image.Image] = {}
    with ExitStack() as showing:
        for event in events:
            if isinstance(event, Finished):
                _let_nobody_wait(shown, tasks, started={stage for stage, _ in steps})
                return event.result
            if isinstance(event, Preview):
                previews[event.image_index] = event.image
                pictures = [previews[index] for index in sorted(previews)]
                shown.picture = HalfBlocks(pictures, rows_below=len(names) + 1)
            if not isinstance(event, Progress | Queued):
                continue
            index = event.stage_index
            if isinstance(event, Queued):
                waiting[index, event.image_index] = event
                if index not in tasks and not _waits(event):
                    continue
            elif event.image_index is not None:
                waiting.pop((index, event.image_index), None)
            if not tasks:  # not before: an error at once stands alone
                showing.enter_context(shown)
                showing.callback(setattr, shown, "picture", None)  # in the end the bars alone stay
            if index not in tasks:
                tasks[index] = shown.add_task(names[index], total=None, waiting="")
            if isinstance(event, Progress):
                images = 1 if event.image_index is None else num_images
                steps[index, event.image_index] = event.step
                done = sum(step for (stage, _), step in steps.items() if stage == index)
                shown.update(tasks[index], completed=done, total=event.total_steps * images)
            queued = [each for (stage, _), each in waiting.items() if stage == index]
            shown.update(tasks[index], waiting=_told(queued))
    raise AssertionError("a stream ends with Finished or an exception")


def _let_nobody_wait(shown: ProgressBars, tasks: Mapping[int, Any], *, started: set[int]) -> None:
    """Takes away the bars of stages without steps, of which there was nothing but the wait."""
    for index, task in tasks.items():
        if index in started:
            shown.update(task, waiting="")
        else:
            shown.remove_task(task)


def _waits(event: Queued) -> bool:
    return event.position > 1 or (event.expected_start_ms or 0) > _SHORT_WAIT_MS


def _told(queued: Sequence[Queued]) -> str:
    """Where the first of some jobs waits; nothing where none does for long."""
    queued = [event for event in queued if _waits(event)]
    if not queued:
        return ""
    first = min(queued, key=lambda event: event.position)
    place = f"in place {first.position} of the line"
    if len(queued) > 1:
        place = f"{len(queued)} images wait, the first {place}"
    if first.expected_start_ms is None:
        return place
    return f"{place}, starts in about {max(1, round(first.expected_start_ms / 1e3))} s"
