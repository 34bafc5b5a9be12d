"""Tells a worker's thread that lives from one that hangs."""

from __future__ import annotations

import threading
import time

# A worker that says nothing for so long is not healthy, although its thread computes: one call of a
# network takes less, or the stage is of no use.
STALL_SECONDS = 120.0
# One that says nothing and does not even compute hangs.
HANG_SECONDS = 3.0


class Pulse:
    """Tells a thread that is long about its work from one that hangs.

    A network's single call may take a minute. A thread in it uses its processor (one that waits for
    a GPU too: CUDA spins); one that hangs on a lock or a socket does not.
    """

    def __init__(self) -> None:
        self._last_beat = self._last_sign = time.monotonic()
        self._clock: int | None = None
        self._computed = 0.0

    def beat(self) -> None:
        """Says that the calling thread, always the same one, moves on."""
        if self._clock is None and hasattr(time, "pthread_getcpuclockid"):  # macOS has none
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._last_beat = self._last_sign = time.monotonic()

    def is_felt(self) -> bool:
        """Whether the thread has beaten or at least computed of late; asked about once a second."""
        now = time.monotonic()
        if self._clock is None:
            self._last_sign = now
        elif (computed := time.clock_gettime(self._clock)) > self._computed:
            self._computed, self._last_sign = computed, now
        return now - self._last_beat < STALL_SECONDS and now - self._last_sign < HANG_SECONDS
