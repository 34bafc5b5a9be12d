"""Paints captions through the SDK, many in flight. It knows no measure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from carrara.aio import AsyncCascade
from carrara.prompts import MAX_SEED
from carrara.results import GenerationResult
from carrara_models.evaluation.runs import Painted


@contextmanager
def open_painter(
    *,
    checkpoints: Sequence[str],
    manifest: Path | None,
    addresses: Mapping[str, Sequence[str]],
    seed: int,
    in_flight: int,
    timeout_seconds: float,
) -> Iterator[CascadePainter]:
    """Opens a cascade, and closes it in the end; other arguments as of `CascadePainter`.

    Args:
        checkpoints: To run in this process.
        manifest: In place of them.
        addresses: In place of both, by the names of `AsyncCascade.connect`.

    Raises:
        CarraraError: It cannot be reached, or its stages do not fit together.
    """

    async def opening() -> AsyncCascade:
        if manifest is not None:
            return await AsyncCascade.load(manifest)
        if checkpoints:
            return await AsyncCascade.embedded(*checkpoints)
        return await AsyncCascade.connect(
            text_encoders=addresses["text_encoders"],
            generators=addresses["generators"],
            decoders=addresses["decoders"],
        )

    with asyncio.Runner() as runner:
        cascade = runner.run(opening())
        try:
            yield CascadePainter(
                cascade,
                runner=runner,
                seed=seed,
                in_flight=in_flight,
                timeout_seconds=timeout_seconds,
            )
        finally:
            runner.run(cascade.aclose())


class CascadePainter:
    """Paints with one cascade; shows how far it is where stderr is a terminal.

    Args:
        cascade: Opened in the loop of `runner`.
        seed: Picture i is painted with seed + i modulo 2^64.
        in_flight: How many pictures are asked for at once.
        timeout_seconds: For each picture.

    Attributes:
        inexact: Whether any picture may differ from the one-process pipeline's.
        warnings: Of all results, each once.
    """

    def __init__(
        self,
        cascade: AsyncCascade,
        *,
        runner: asyncio.Runner,
        seed: int,
        in_flight: int,
        timeout_seconds: float,
    ) -> None:
        self._cascade, self._runner = cascade, runner
        self._seed, self._in_flight, self._timeout = seed, in_flight, timeout_seconds
        self._console = Console(stderr=True)
        self.inexact = False
        self.warnings: dict[str, None] = {}

    @property
    def reads_captions(self) -> bool:
        """Whether the cascade paints from text; otherwise captions only count the pictures."""
        return any(role == "text-encoder" for role, _, _ in self._cascade.descriptions)

    @property
    def stages(self) -> list[dict[str, str]]:
        """What paints, for a report."""
        return [
            {
                "role": role,
                "stage": description.stage or role,
                "checkpoint": description.checkpoint,
                "fingerprint": description.fingerprint,
            }
            for role, _, description in self._cascade.descriptions
        ]

    def paint(self, captions: Sequence[str], settings: Mapping[str, Any]) -> Painted:
        """Paints one picture of each caption.

        Args:
            settings: As of `AsyncCascade.generate`.

        Raises:
            CarraraError: The first failure; what else runs is cancelled.
        """
        bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        told = " ".join(f"{name} {value}" for name, value in settings.items())
        with bars:
            task = bars.add_task(told or "painting", total=len(captions))
            return self._runner.run(
                self._paint(captions, settings, on_picture=lambda: bars.advance(task))
            )

    async def _paint(
        self,
        captions: Sequence[str],
        settings: Mapping[str, Any],
        *,
        on_picture: Callable[[], None],
    ) -> Painted:
        begin = time.monotonic()
        room = asyncio.Semaphore(self._in_flight)
        told = captions if self.reads_captions else [None] * len(captions)
        last: list[GenerationResult] = []

        async def one(index: int, caption: str | None) -> NDArray[np.uint8]:
            async with room:
                result = await self._cascade.generate(
                    caption,
                    **settings,
                    seed=(self._seed + index) % (MAX_SEED + 1),
                    timeout_seconds=self._timeout,
                )
            self.inexact |= result.numerics != "exact"
            self.warnings |= dict.fromkeys(warning.message for warning in result.warnings)
            last[:] = [result]
            on_picture()
            return np.asarray(result.images[0].image)

        tasks = [asyncio.ensure_future(one(index, caption)) for index, caption in enumerate(told)]
        try:
            pictures = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return Painted(
            pictures=np.stack(pictures),
            # Both are the same for all pictures.
            settings=dict(last[0].settings),
            network_calls=self._network_calls(last[0]),
            seconds=time.monotonic() - begin,
        )

    def _network_calls(self, result: GenerationResult) -> int:
        denoises = [
            any(argument.name == "num_inference_steps" for argument in description.arguments)
            for _, _, description in self._cascade.descriptions
        ]
        return sum(
            usage.steps for usage, counts in zip(result.usage, denoises, strict=True) if counts
        )
