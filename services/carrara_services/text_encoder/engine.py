"""The text encoder's engine: texts that come together are encoded together, and none twice."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch

from carrara_models.errors import NumericalError
from carrara_models.parts import Encoded, TextEncoder, Texts
from carrara_services.admission.demand import Demand, Priority
from carrara_services.admission.following import EXPIRED, finished
from carrara_services.admission.happenings import Finished, Usage
from carrara_services.refusals import DeadlineError
from carrara_services.text_encoder import ROLE
from carrara_services.worker import Worker


@dataclass(frozen=True)
class EncodedText:
    """One piece's tensors and what they cost; a cached one cost nothing."""

    encoded: Encoded
    usage: Usage
    cached: bool


class Cache:
    """Least recently used texts leave first; bounded by how many they are and by their bytes.

    Attributes:
        hits: Texts that were here, or just being encoded for another request.
        misses: Texts that had to be encoded.
        bytes: Of all that it holds.
    """

    def __init__(self, *, max_texts: int, max_bytes: int) -> None:
        self._max_texts, self._max_bytes = max_texts, max_bytes
        self._texts: OrderedDict[Texts, Encoded] = OrderedDict()
        self.hits = self.misses = self.bytes = 0

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, text: Texts) -> Encoded | None:
        """Looks a text up, and counts that as use."""
        if text not in self._texts:
            return None
        self._texts.move_to_end(text)
        return self._texts[text]

    def put(self, text: Texts, encoded: Encoded) -> None:
        """Keeps a text's tensors, and drops what has not been used for longest."""
        if (before := self._texts.pop(text, None)) is not None:
            self.bytes -= _size(text, before)
        self._texts[text] = encoded
        self.bytes += _size(text, encoded)
        while len(self._texts) > self._max_texts or self.bytes > self._max_bytes:
            oldest, dropped = self._texts.popitem(last=False)
            self.bytes -= _size(oldest, dropped)


def _size(text: Texts, encoded: Encoded) -> int:
    words = sum(len(value.encode()) for value in astuple(text) if isinstance(value, str))
    return words + sum(tensor.nbytes for tensor in encoded.tensors.values())


class _Flight:
    """One text being encoded, and how many requests wait for it."""

    def __init__(self, task: asyncio.Task[Finished]) -> None:
        self.task = task
        self.waiting = 0


class TextEncoderEngine:
    """One text encoder, the thread that it works in, and the texts that it knows already.

    Texts are known by their content: the weights of a process never change. All but the worker's
    thread runs in one event loop.

    Attributes:
        part: The text encoder itself.
        worker: Where its work waits and runs.
        cache: What has been encoded.
    """

    def __init__(
        self,
        part: TextEncoder,
        *,
        max_queue_jobs: int,
        max_queue_seconds: float = math.inf,
        max_batch_rows: int = 1,
        max_wait_seconds: float = 0.0,
        max_cached_texts: int,
        max_cached_bytes: int,
    ) -> None:
        self.part = part
        self.worker = Worker(
            self._encode,
            name="encoding",
            max_queue_jobs=max_queue_jobs,
            max_queue_seconds=max_queue_seconds,
            group=lambda texts: texts.group,
            max_batch=1 if part.numerics.exact else max_batch_rows,
            max_wait_seconds=max_wait_seconds,
        )
        self.cache = Cache(max_texts=max_cached_texts, max_bytes=max_cached_bytes)
        self._flights: dict[Texts, _Flight] = {}

    async def encode(
        self, key: Texts, *, deadline: float | None, priority: Priority = Priority.NORMAL
    ) -> EncodedText:
        """Encodes one piece, or takes it from the cache or from a request that is encoding it now.

        Args:
            key: One piece of the part's `split`.
            deadline: In the event loop's time; None for none.
            priority: Of the first request that asks for it, where several wait for one text.

        Raises:
            DeadlineError: The deadline passed.
            QueueFullError, DrainingError, StalledError: The work was refused.
        """
        if (known := self.cache.get(key)) is not None:
            self.cache.hits += 1
            return EncodedText(known, Usage(queue_ms=0, running_ms=0, compute_ms=0), cached=True)
        joined = key in self._flights
        if joined:
            self.cache.hits += 1
        else:
            self.cache.misses += 1
        flight = self._flights.get(key) or self._take_off(key, priority)
        flight.waiting += 1
        why: str | None = None
        try:
            async with asyncio.timeout_at(deadline):
                # Shielded: one request's end is not that of the others that wait for this text.
                done = await asyncio.shield(flight.task)
        except TimeoutError:
            why = EXPIRED
            raise DeadlineError(f"in the {ROLE}") from None
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                flight.task.cancel(why)
                # At once, not when the task has ended: nobody may join what is being cancelled.
                del self._flights[key]
        return EncodedText(done.result, done.usage, cached=joined)

    def _take_off(self, key: Texts, priority: Priority) -> _Flight:
        work = finished(
            self.worker.line, key, deadline=None, stage=ROLE, demand=Demand(priority=priority)
        )
        task = asyncio.create_task(work)
        flight = self._flights[key] = _Flight(task)

        def land(task: asyncio.Task[Finished]) -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]
            if not task.cancelled() and task.exception() is None:
                self.cache.put(key, task.result().result)

        task.add_done_callback(land)
        return flight

    async def warm_up(self) -> None:
        """Encodes an empty prompt on the path that requests take; twice, as the first is cold."""
        texts = Texts(prompt="", negative=True)
        for _ in range(2):
            self.worker.line.forget_pace()
            for piece in self.part.split(texts):
                await finished(self.worker.line, piece, deadline=None, stage=ROLE)

    @torch.inference_mode()
    def _encode(self, pieces: Sequence[Texts]) -> list[Encoded | NumericalError]:
        return self.part.encode(pieces)
