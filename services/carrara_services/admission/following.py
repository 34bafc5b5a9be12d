"""From the line to a caller in asyncio: its deadline, its cancellation, its errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from carrara_services.admission.demand import PLAIN, Demand
from carrara_services.admission.happenings import (
    Failed,
    Finished,
    Suspended,
    UnderWay,
)
from carrara_services.admission.line import Ticket, WaitingLine
from carrara_services.admission.mailbox import Mailbox
from carrara_services.refusals import DeadlineError

# What a task is cancelled with because the time of all that waited for it is over.
EXPIRED = "expired"


async def follow(
    line: WaitingLine,
    payload: Any,
    *,
    deadline: float | None,
    stage: str,
    demand: Demand = PLAIN,
) -> AsyncIterator[UnderWay | Finished | Suspended]:
    """Submits work and yields what happens to it, `Finished` or `Suspended` last.

    Leaving the iteration early, by cancellation too, abandons the work; being cancelled with
    `EXPIRED` says that its time was over. Close it for certain with `contextlib.aclosing`.

    Args:
        deadline: In the event loop's time, which is that of `time.monotonic`; None for none.
        stage: Who is working, for the deadline's message.

    Raises:
        DeadlineError: The deadline passed; the message says where the work stood.
        QueueFullError, DrainingError, StalledError: The work was refused.
        Exception: Whatever the work itself raised.
    """
    happenings = Mailbox()
    ticket = line.submit(payload, listener=happenings.put, demand=demand, deadline=deadline)
    expired = False
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    happening = await happenings.get()
            except TimeoutError:
                expired = True
                raise _deadline_error(stage, ticket) from None
            if isinstance(happening, Failed):
                raise happening.error
            yield happening
            if isinstance(happening, Finished | Suspended):
                return
    except asyncio.CancelledError as cancelled:
        expired = cancelled.args == (EXPIRED,)
        raise
    finally:
        line.abandon(ticket, expired=expired)


def _deadline_error(stage: str, ticket: Ticket) -> DeadlineError:
    if ticket.taken is None:
        return DeadlineError(f"in the queue of the {stage}")
    progress = ticket.progress
    if progress is None:
        return DeadlineError(f"in the {stage}")
    return DeadlineError(
        f"in the {stage} after step {progress.step} of {progress.num_steps}", step=progress.step
    )


async def finished(
    line: WaitingLine,
    payload: Any,
    *,
    deadline: float | None,
    stage: str,
    demand: Demand = PLAIN,
) -> Finished:
    """Submits work that is never suspended and waits for its end; raises as `follow` does."""
    return await end_of(follow(line, payload, deadline=deadline, stage=stage, demand=demand))


async def end_of(work: AsyncIterator[UnderWay | Finished | Suspended]) -> Finished:
    """Waits for the end of work that is followed and never suspended."""
    async with contextlib.aclosing(work) as happenings:  # type: ignore[type-var]
        async for happening in happenings:
            if isinstance(happening, Finished):
                return happening
    raise AssertionError("work ends with Finished or an error")
