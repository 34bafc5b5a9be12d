"""How far the stages of one `carrara generate` are: bars, and above them the previews."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from PIL import Image
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars

from carrara.cli.half_blocks import HalfBlocks
from carrara.results import Event, Finished, GenerationResult, Preview, Progress


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
    """Shows a bar for each stage from its first step on, and previews; gives the result.

    Args:
        names: Of the stages, in the order of the chain.
    """
    shown = _Shown(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    tasks: dict[int, Any] = {}
    steps: dict[tuple[int, int | None], int] = {}
    previews: dict[int, Image.Image] = {}
    with ExitStack() as showing:
        for event in events:
            if isinstance(event, Finished):
                return event.result
            if isinstance(event, Preview):
                previews[event.image_index] = event.image
                pictures = [previews[index] for index in sorted(previews)]
                shown.picture = HalfBlocks(pictures, rows_below=len(names) + 1)
            if not isinstance(event, Progress):
                continue
            if not tasks:  # not before: an error at once stands alone
                showing.enter_context(shown)
                showing.callback(setattr, shown, "picture", None)  # in the end the bars alone stay
            index = event.stage_index
            if index not in tasks:
                images = 1 if event.image_index is None else num_images
                tasks[index] = shown.add_task(names[index], total=event.total_steps * images)
            steps[index, event.image_index] = event.step
            done = sum(step for (stage, _), step in steps.items() if stage == index)
            shown.update(tasks[index], completed=done)
    raise AssertionError("a stream ends with Finished or an exception")
