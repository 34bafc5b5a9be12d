"""A cascade as a target: each request through the SDK, as an application sends it."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import numpy as np

from carrara.aio import AsyncCascade
from carrara.exceptions import CarraraError, DeadlineError, ResourceExhaustedError
from carrara.results import Finished, Progress
from carrara.v1.stage_pb2 import NUMERICS_EXACT
from carrara_services.bench.load import Ending, Outcome
from carrara_services.bench.workloads import PaintRequest


class CascadeTarget:
    """Paints with one cascade, or with several clients' own connections to it.

    Args:
        cascades: Each a client; requests go to them in turn. Best connected with `max_attempts=1`,
            so that a refusal is seen and not replayed.

    Attributes:
        cascade: The first.
        exact: Whether every stage says that its pictures are the one-process pipeline's.
    """

    def __init__(self, *cascades: AsyncCascade) -> None:
        self.cascade = cascade = cascades[0]
        self._turn = itertools.cycle(cascades)
        self._reads_prompts = any(role == "text-encoder" for role, _, _ in cascade.descriptions)
        self.exact = all(
            description.provenance.numerics == NUMERICS_EXACT
            for _, _, description in cascade.descriptions
        )

    async def paint(self, request: PaintRequest, *, timeout_seconds: float) -> Outcome:
        """As of `carrara_services.bench.load.Target`."""
        first_step_at: float | None = None
        events = next(self._turn).stream(
            request.prompt if self._reads_prompts else None,
            **request.settings,
            seed=request.seed,
            timeout_seconds=timeout_seconds,
        )
        try:
            async with aclosing(events):
                async for event in events:
                    # That a text has been encoded is no step of the picture.
                    if isinstance(event, Progress) and event.image_index is not None:
                        first_step_at = first_step_at or time.monotonic()
                    if isinstance(event, Finished):
                        return Outcome(
                            "painted",
                            first_step_at=first_step_at,
                            usage=event.result.usage,
                            picture=np.asarray(event.result.images[0].image),
                        )
        except CarraraError as error:
            return Outcome(_ending_of(error), error=error, first_step_at=first_step_at)
        raise AssertionError("a stream ends with Finished or an exception")


@asynccontextmanager
async def cascade_target(
    connect: Callable[[], Awaitable[AsyncCascade]], *, clients: int
) -> AsyncIterator[CascadeTarget]:
    """Connects so many clients, and closes them afterwards."""
    async with AsyncExitStack() as stack:
        cascades = [await stack.enter_async_context(await connect()) for _ in range(clients)]
        yield CascadeTarget(*cascades)


def _ending_of(error: CarraraError) -> Ending:
    if isinstance(error, ResourceExhaustedError) and error.reason == "QUEUE_FULL":
        return "refused"
    return "timed out" if isinstance(error, DeadlineError) else "failed"
