"""The cascade for code without asyncio: `AsyncCascade` on one private event-loop thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator, Iterable
from concurrent.futures import Future, wait
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from carrara.aio import AsyncCascade
from carrara.arguments import GenerateArguments
from carrara.exceptions import CascadeClosedError
from carrara.results import Event, GenerationResult
from carrara.v1 import stage_pb2

T = TypeVar("T")


class Cascade:
    """A chain of connected stages; made by `connect`, `embedded` or `load`.

        with Cascade.embedded() as cascade:
            result = cascade.generate("a large red circle", seed=7)
            result.images[0].save("circle.png")

    Threads may share it.
    """

    def __init__(self, cascade: AsyncCascade, *, loop: _LoopThread) -> None:
        self._cascade, self._loop = cascade, loop

    @classmethod
    def connect(
        cls,
        *,
        text_encoders: Iterable[str] = (),
        generators: Iterable[str],
        decoders: Iterable[str] = (),
        max_attempts: int | None = None,
    ) -> Self:
        """Connects to running stages; as `AsyncCascade.connect`."""
        return cls._opened(
            AsyncCascade.connect(
                text_encoders=text_encoders,
                generators=generators,
                decoders=decoders,
                max_attempts=max_attempts,
            )
        )

    @classmethod
    def embedded(
        cls, *checkpoints: str | PathLike[str], checkpoint: str | PathLike[str] | None = None
    ) -> Self:
        """Runs all stages of a checkpoint in this process; as `AsyncCascade.embedded`."""
        return cls._opened(AsyncCascade.embedded(*checkpoints, checkpoint=checkpoint))

    @classmethod
    def load(cls, path: str | PathLike[str], *, max_attempts: int | None = None) -> Self:
        """Opens the cascade of a manifest; as `AsyncCascade.load`."""
        return cls._opened(AsyncCascade.load(path, max_attempts=max_attempts))

    @classmethod
    def _opened(cls, opening: Coroutine[Any, Any, AsyncCascade]) -> Self:
        loop = _LoopThread()
        try:
            return cls(loop.run(opening), loop=loop)
        except BaseException:
            loop.close()
            raise

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of all settings that this cascade takes."""
        return self._cascade.settings

    @property
    def descriptions(self) -> tuple[tuple[str, str, stage_pb2.DescribeResponse], ...]:
        """Role, address and description of every stage, in the order of the chain."""
        return self._cascade.descriptions

    def generate(
        self, prompt: str | None = None, **settings: Unpack[GenerateArguments]
    ) -> GenerationResult:
        """Paints pictures; as `AsyncCascade.generate`. Ctrl-C cancels the running jobs."""
        return self._loop.run(self._cascade.generate(prompt, **settings))

    def stream(
        self, prompt: str | None = None, **settings: Unpack[GenerateArguments]
    ) -> Generator[Event, None, None]:
        """Paints pictures and tells how far they are; as `AsyncCascade.stream`."""
        events = self._cascade.stream(prompt, **settings)

        async def next_event() -> Event | None:
            return await anext(events, None)

        try:
            while (event := self._loop.run(next_event())) is not None:
                yield event
        finally:
            if not self._loop.closed:
                self._loop.run(events.aclose())

    def close(self) -> None:
        """Cancels what runs and ends the connections; as `AsyncCascade.aclose`."""
        if not self._loop.closed:
            try:
                self._loop.run(self._cascade.aclose())
            finally:
                self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _LoopThread:
    """An event loop that runs in a thread of its own until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="carrara-cascade", daemon=True
        )
        self._thread.start()
        self.closed = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there; an interruption here, such as Ctrl-C, first cancels it there."""
        if self.closed:
            coroutine.close()
            raise CascadeClosedError("the cascade has been closed")
        tasks: list[asyncio.Task[T]] = []
        outcome: Future[T] = Future()

        def begin() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda task: _settle(outcome, task))

        self._loop.call_soon_threadsafe(begin)
        try:
            return outcome.result()
        except BaseException:
            # Waited for: what follows, such as closing a stream, must not meet it still running.
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            wait([outcome])
            raise

    def close(self) -> None:
        """Lets what was cancelled come to its end, then ends the loop and its thread."""
        self.closed = True
        asyncio.run_coroutine_threadsafe(_wait_for_the_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _settle(outcome: Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        outcome.set_exception(CascadeClosedError("the cascade was closed"))
    elif (error := task.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(task.result())


async def _wait_for_the_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
