"""Events that wait to be taken: all of them, but of an image's previews the latest."""

from __future__ import annotations

import asyncio

from PIL import Image

from carrara.results import Preview, Progress
from carrara.untaken import UntakenEvents


def preview(step: int, *, image_index: int = 0) -> Preview:
    return Preview("generator", 1, step, Image.new("RGB", (1, 1)), image_index)


def progress(step: int) -> Progress:
    return Progress("generator", 1, step, 9, 0)


async def test_of_each_image_s_previews_only_the_latest_waits() -> None:
    events = UntakenEvents()
    events.put(progress(1))
    events.put(preview(1))
    events.put(preview(1, image_index=1))
    events.put(progress(2))
    events.put(preview(2))
    events.end()
    taken = []
    while (event := await events.take()) is not None:
        taken.append((type(event), event.step, event.image_index))
    assert taken == [(Progress, 1, 0), (Preview, 1, 1), (Progress, 2, 0), (Preview, 2, 0)]
    assert await events.take() is None


async def test_taken_ones_make_room_for_the_next() -> None:
    events = UntakenEvents()
    for step in (1, 2):
        events.put(preview(step))
        event = await events.take()
        assert isinstance(event, Preview)
        assert event.step == step


async def test_who_waits_is_told_of_the_end() -> None:
    events = UntakenEvents()
    waiting = asyncio.create_task(events.take())
    await asyncio.sleep(0)
    events.end()
    assert await waiting is None
