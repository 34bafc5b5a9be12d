"""The events of a stream that its caller has not taken yet."""

from __future__ import annotations

import asyncio
from collections import deque

from carrara.results import Event, Preview


class UntakenEvents:
    """Keeps events in order, but of the previews of one image the latest alone.

    So a caller who takes them slowly holds few pictures.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._previews: dict[int, Preview] = {}  # those among them, by image
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, event: Event) -> None:
        """Adds an event."""
        if isinstance(event, Preview):
            if (older := self._previews.get(event.image_index)) is not None:
                self._events.remove(older)
            self._previews[event.image_index] = event
        self._events.append(event)
        self._changed.set()

    def end(self) -> None:
        """Says that no more come."""
        self._ended = True
        self._changed.set()

    async def take(self) -> Event | None:
        """Takes the first, or waits for it; None once all are taken and no more come."""
        while not self._events and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, Preview):
            del self._previews[event.image_index]
        return event
