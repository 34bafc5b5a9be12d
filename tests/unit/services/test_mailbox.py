"""What a worker tells from its thread, and a caller in asyncio reads when it likes."""

from __future__ import annotations

import asyncio
import threading

import numpy as np

from carrara_services.admission.happenings import Preview, Progress
from carrara_services.admission.mailbox import Mailbox


def preview(step: int) -> Preview:
    return Preview(step, np.zeros((1, 1, 3), np.uint8))


async def test_all_comes_in_order_but_of_previews_only_the_latest():
    mailbox = Mailbox()
    for step in range(1, 4):
        mailbox.put(Progress(step, 5))
        mailbox.put(preview(step))
    mailbox.put(Progress(4, 5))
    read = [await mailbox.get() for _ in range(5)]
    assert [(type(each), each.step) for each in read] == [
        (Progress, 1),
        (Progress, 2),
        (Progress, 3),
        (Preview, 3),
        (Progress, 4),
    ]
    # One that was read takes no later one's place.
    mailbox.put(preview(5))
    assert (await mailbox.get()).step == 5


async def test_a_reader_waits_for_another_thread_and_misses_nothing():
    mailbox = Mailbox()

    def tell() -> None:
        for step in range(500):
            mailbox.put(Progress(step, 500))

    thread = threading.Thread(target=tell)
    thread.start()
    async with asyncio.timeout(30):
        assert [(await mailbox.get()).step for _ in range(500)] == list(range(500))
    thread.join()


async def test_a_reader_who_was_cancelled_loses_nothing():
    mailbox = Mailbox()
    waiting = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    waiting.cancel()
    mailbox.put(Progress(1, 2))
    await asyncio.gather(waiting, return_exceptions=True)
    assert (await mailbox.get()).step == 1
