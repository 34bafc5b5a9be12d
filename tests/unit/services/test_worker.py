"""The one-at-a-time worker: what becomes of its work when its thread ends."""

from __future__ import annotations

import asyncio

import pytest

from carrara_services.admission.following import finished
from carrara_services.refusals import StalledError
from carrara_services.worker import Worker


async def test_work_that_ends_the_thread_is_failed_and_not_left_without_an_answer():
    def die(_: object) -> object:
        raise SystemExit("the device is gone")

    worker = Worker(die, name="dying", max_queue_jobs=4)
    async with asyncio.timeout(20):
        with pytest.raises(StalledError):
            await finished(worker.line, "work", deadline=None, stage="decoder")
    assert not worker.line.healthy
    worker.close()
