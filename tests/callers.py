"""Callers that paint without a pause through the SDK alone, each request known by its seed.

A seed decides the whole request, so that its picture can be compared with that of another run. Also
a script, for a container that has the SDK and no torch: it prints one JSON object per finished
request. First the references, then the load:

    python callers.py ADDRESSES --seeds 0:99 --once --prompts-from-seed
    python callers.py ADDRESSES --seeds 0:99 --seconds 30 --prompts-from-seed

ADDRESSES are --text-encoder ADDR --generator ADDR --decoder ADDR, or the variables that
`carrara up` sets. It ends after --seconds, with --once after the last seed, or on SIGTERM, and
always finishes what is under way. Its status is 1 if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

from carrara import AsyncCascade, CarraraError

PROMPT = "large red circle"
MIN_OBJECTS = 3
# So that stages that refuse at once are not asked many times a second.
PAUSE_AFTER_ERROR_SECONDS = 0.2


@dataclass(frozen=True)
class Painted:
    """One finished request.

    Attributes:
        sha256: Of the picture's RGB bytes; None if the request failed.
        attempts: Calls made, by role; empty if the request failed.
        steps: Likewise.
        error: Type and message of what went wrong.
        started: As `time.time()`.
        ended: Likewise.
    """

    seed: int
    prompt: str
    sha256: str | None
    attempts: dict[str, int]
    steps: dict[str, int]
    error: str | None
    started: float
    ended: float

    @property
    def replays(self) -> int:
        """Calls beyond the three that one picture takes."""
        return sum(count - 1 for count in self.attempts.values())


def prompt_of(seed: int) -> str:
    """A prompt that no other seed has: one object for each octal digit of the seed."""
    return " above ".join(
        f"{('small', 'large')[digit >> 2 & 1]} {('blue', 'red')[digit >> 1 & 1]} "
        f"{('square', 'circle')[digit & 1]}"
        for digit in map(int, f"{seed:0{MIN_OBJECTS}o}")
    )


async def paint(
    cascade: AsyncCascade, seed: int, *, prompt: str, steps: int, timeout_seconds: float = 60
) -> Painted:
    """Makes one request; an error of the SDK is noted down, any other is raised."""
    started = time.time()
    sha256, attempts, steps_done, error = None, {}, {}, None
    try:
        result = await cascade.generate(
            prompt, seed=seed, num_inference_steps=steps, timeout_seconds=timeout_seconds
        )
    except CarraraError as failure:
        error = f"{type(failure).__name__}: {failure}"
    else:
        sha256 = hashlib.sha256(result.images[0].image.tobytes()).hexdigest()
        attempts = {usage.role: usage.attempts for usage in result.usage}
        steps_done = {usage.role: usage.steps for usage in result.usage}
    return Painted(seed, prompt, sha256, attempts, steps_done, error, started, time.time())


async def run_callers(
    cascade: AsyncCascade,
    seeds: Iterable[int],
    *,
    callers: int,
    steps: int,
    prompt_for: Callable[[int], str] = prompt_of,
    stop: asyncio.Event | None = None,
    on_painted: Callable[[Painted], None] = lambda _: None,
) -> list[Painted]:
    """Paints the seeds, so many at once, until they or the time are over.

    Args:
        stop: Once set, no caller begins another request.
        on_painted: Called with each request as it ends.
    """
    remaining = iter(seeds)
    everything: list[Painted] = []

    async def call_on_and_on() -> None:
        for seed in remaining:
            if stop is not None and stop.is_set():
                return
            painted = await paint(cascade, seed, prompt=prompt_for(seed), steps=steps)
            everything.append(painted)
            on_painted(painted)
            if painted.error is not None:
                await asyncio.sleep(PAUSE_AFTER_ERROR_SECONDS)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call_on_and_on())
    return everything


def _seed_range(text: str) -> range:
    first, _, last = text.partition(":")
    seeds = range(int(first), int(last) + 1)
    if not seeds:
        raise ValueError(text)
    return seeds


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for role in ("text-encoder", "generator", "decoder"):
        variable = os.environ.get(f"CARRARA_{role.upper().replace('-', '_')}")
        parser.add_argument(f"--{role}", default=variable, required=not variable, metavar="ADDR")
    parser.add_argument("--callers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=None, help="end after so long")
    parser.add_argument(
        "--seeds", type=_seed_range, default=range(100), metavar="FIRST:LAST", help="both included"
    )
    parser.add_argument("--once", action="store_true", help="each seed once, not over and over")
    parser.add_argument(
        "--prompts-from-seed", action="store_true", help="one for each seed, not one for all"
    )
    return parser.parse_args()


async def _main(arguments: argparse.Namespace) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if arguments.seconds is not None:
        loop.call_later(arguments.seconds, stop.set)
    seeds: Iterator[int] = (
        iter(arguments.seeds) if arguments.once else itertools.cycle(arguments.seeds)
    )
    async with await AsyncCascade.connect(
        text_encoders=[arguments.text_encoder],
        generators=[arguments.generator],
        decoders=[arguments.decoder],
    ) as cascade:
        everything = await run_callers(
            cascade,
            seeds,
            callers=arguments.callers,
            steps=arguments.steps,
            prompt_for=prompt_of if arguments.prompts_from_seed else lambda _: PROMPT,
            stop=stop,
            on_painted=lambda painted: print(json.dumps(asdict(painted)), flush=True),
        )
    return int(any(painted.error is not None for painted in everything))


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(_arguments())))
