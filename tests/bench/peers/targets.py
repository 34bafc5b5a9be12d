"""Peers as targets of Carrara's load generator: over HTTP, and diffusers in this process."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from painting import Computing, Painter, Wanted
from PIL import Image

from carrara_services.bench.load import Ending, Outcome
from carrara_services.bench.workloads import PaintRequest

REFUSALS = (429, 503)
TIMEOUTS = (408, 504)


class HttpTarget:
    """POST /generate of one peer; close it when done."""

    def __init__(self, url: str) -> None:
        self._url = url
        # As many connections as requests are under way: none waits here for its turn.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx2.AsyncClient(limits=limits, trust_env=False)

    async def paint(self, request: PaintRequest, *, timeout_seconds: float) -> Outcome:
        """As of `carrara_services.bench.load.Target`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                response = await self._client.post(
                    self._url, json=asdict(wanted_of(request)), timeout=None
                )
        except TimeoutError as error:
            return Outcome("timed out", error=error)
        except httpx2.HTTPError as error:
            return Outcome("failed", error=error)
        if response.status_code != 200:
            said = RuntimeError(f"HTTP {response.status_code}: {response.text[:200]}")
            return Outcome(_ending_of(response.status_code), error=said)
        with Image.open(io.BytesIO(response.content)) as picture:
            return Outcome("painted", picture=np.asarray(picture.convert("RGB")))

    async def aclose(self) -> None:
        """Ends all connections."""
        await self._client.aclose()


class DiffusersTarget:
    """The pipeline in this process, one picture at a time, in a thread; close it when done.

    Args:
        cpus: Processors that the thread may use; None leaves them as they are.
    """

    def __init__(
        self, checkpoint: Path, computing: Computing, *, cpus: Iterable[int] | None
    ) -> None:
        def on_cpus() -> None:
            if cpus is not None:
                os.sched_setaffinity(0, cpus)

        self._thread = ThreadPoolExecutor(1, initializer=on_cpus)
        self._painter: Painter = self._thread.submit(Painter, checkpoint, computing).result()

    async def paint(self, request: PaintRequest, *, timeout_seconds: float) -> Outcome:
        """As of `carrara_services.bench.load.Target`; what has begun is finished for nobody."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._thread, self._painter.paint, [wanted_of(request)])
        try:
            (picture,) = await asyncio.wait_for(work, timeout_seconds)
        except TimeoutError as error:
            return Outcome("timed out", error=error)
        return Outcome("painted", picture=np.asarray(picture))

    async def aclose(self) -> None:
        """Ends the thread."""
        await asyncio.to_thread(self._thread.shutdown)


def wanted_of(request: PaintRequest) -> Wanted:
    """A request as the peers take it."""
    settings: dict[str, Any] = dict(request.settings)
    return Wanted(prompt=request.prompt, seed=request.seed, **settings)


def _ending_of(status: int) -> Ending:
    if status in REFUSALS:
        return "refused"
    return "timed out" if status in TIMEOUTS else "failed"
