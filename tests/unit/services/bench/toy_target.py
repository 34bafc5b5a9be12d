"""A target that paints nothing: it waits, and answers as it is told."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np

from carrara_services.bench.load import Ending, Outcome
from carrara_services.bench.workloads import PaintRequest


@dataclass
class ToyTarget:
    """Counts what it is asked for.

    Attributes:
        seconds: That each request takes.
        endings: Of the requests by their index; "painted" of all others.
        blocked: Of the requests by their index: seconds in which nothing else runs in the process.
    """

    seconds: float = 0.0
    endings: dict[int, Ending] = field(default_factory=dict)
    blocked: dict[int, float] = field(default_factory=dict)
    asked: list[PaintRequest] = field(default_factory=list)
    running: int = 0
    most_at_once: int = 0

    async def paint(self, request: PaintRequest, *, timeout_seconds: float) -> Outcome:
        self.asked.append(request)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        time.sleep(self.blocked.get(request.index, 0))  # noqa: ASYNC251
        await asyncio.sleep(self.seconds)
        self.running -= 1
        ending = self.endings.get(request.index, "painted")
        if ending != "painted":
            return Outcome(ending, error=RuntimeError(f"request {request.index}"))
        picture = np.zeros((1, 1, 3), dtype=np.uint8)
        return Outcome("painted", first_step_at=time.monotonic(), picture=picture)
