"""What a worker has told of some work and its caller, in asyncio, has not read yet."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque

from carrara_services.admission.happenings import Happening, Preview


class Mailbox:
    """Keeps what happens in order, but of previews the latest alone.

    So a caller who reads slowly, or not at all, holds up no worker and no memory: all else is a few
    numbers for each step.
    """

    def __init__(self) -> None:
        """Empty; made and read in one event loop."""
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()
        self._unread: deque[Happening] = deque()
        self._preview: Preview | None = None  # the one among them

    def put(self, happening: Happening) -> None:
        """Adds what has happened, from any thread, without waiting for the reader."""
        with self._lock:
            if isinstance(happening, Preview):
                if self._preview is not None:
                    self._unread.remove(self._preview)
                self._preview = happening
            self._unread.append(happening)
        with contextlib.suppress(RuntimeError):  # the caller's event loop has closed meanwhile
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def get(self) -> Happening:
        """Takes the first that is there, or waits for it."""
        while True:
            with self._lock:
                if self._unread:
                    happening = self._unread.popleft()
                    if happening is self._preview:
                        self._preview = None
                    return happening
            # What is put from here on sets it later, as that is done by this thread.
            self._arrived.clear()
            await self._arrived.wait()
