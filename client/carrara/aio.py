"""The cascade for asyncio: encode once, then each image through generators and decoders on its own.

What stages hand to one another is forwarded unopened; only the last one's picture is read.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace
from functools import partial
from os import PathLike, fspath
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import numpy as np
from PIL import Image

from carrara.arguments import (
    NAMES,
    OF_THE_REQUEST,
    GenerateArguments,
    full_names,
    values_for,
)
from carrara.chain import Chain, Step, held_to, link
from carrara.connections import Request, Stage
from carrara.exceptions import CascadeClosedError, InternalStageError, InvalidArgumentError
from carrara.manifest import read_manifest
from carrara.outcomes import Outcome
from carrara.prompts import PRIORITIES, Prompt, check, read, refusal
from carrara.results import Event, Finished, GenerationResult, Preview, Progress, Queued
from carrara.runtimes import RunningStages, StageToRun, start_embedded
from carrara.tensors import TensorError, to_numpy
from carrara.untaken import UntakenEvents
from carrara.v1 import stage_pb2, text_encoder_pb2
from carrara.v1.tensor_pb2 import Tensor

DEFAULT_TIMEOUT_SECONDS = 600.0
MAX_IMAGES_AT_ONCE = 16  # of one request, so that it leaves room in the stages' queues

Emit = Callable[[Event], None]
T = TypeVar("T")


class AsyncCascade:
    """A chain of connected stages; made by `connect`, `embedded` or `load`.

        async with await AsyncCascade.connect(
            text_encoders=["localhost:50051"],
            generators=["localhost:50052"],
            decoders=["localhost:50053"],
        ) as cascade:
            result = await cascade.generate("a large red circle", seed=7)
            result.images[0].save("circle.png")

    Several requests may run at once.
    """

    def __init__(self, chain: Chain, *, running: RunningStages | None = None) -> None:
        self._chain, self._running = chain, running
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def connect(
        cls,
        *,
        text_encoders: Iterable[str] = (),
        generators: Iterable[str],
        decoders: Iterable[str] = (),
        max_attempts: int | None = None,
    ) -> Self:
        """Connects to running stages and checks that they fit together.

        Args:
            text_encoders: Addresses, each one stage: `host:port`, `unix:/path` or `dns:///name:port`;
                replicas of one stage stand in one string, `host:a,host:b`, and take turns.
            generators: Likewise. What they consume and produce gives their order.
            decoders: Likewise.
            max_attempts: Calls to a stage for one piece of work, replays included. None is five, or
                more where it has more replicas; 1 replays nothing, for callers that would rather
                see each refusal.

        Raises:
            StageUnavailableError: A stage did not answer within ten seconds, or answered and did
                not serve.
            NotAStageError: An address is something else.
            ContractError: Two stages do not fit together; names both.
            InvalidArgumentError: An address cannot be read, there is no generator, or
                `max_attempts` is below 1.
        """
        if max_attempts is not None and max_attempts < 1:
            raise refusal("max_attempts", max_attempts, "1 or more")
        stages_of = partial(_stages, max_attempts=max_attempts)
        encoders = stages_of("text-encoder", "text_encoders", text_encoders)
        painters = stages_of("generator", "generators", generators)
        if not painters:
            raise refusal("generators", [], "at least one address")
        painters += stages_of("decoder", "decoders", decoders)
        stages = [*encoders, *painters]
        try:
            await _all(stage.connect() for stage in stages)
            return cls(link(encoders, painters))
        except BaseException:
            await asyncio.gather(*(stage.close() for stage in stages))
            raise

    @classmethod
    async def embedded(
        cls, *checkpoints: str | PathLike[str], checkpoint: str | PathLike[str] | None = None
    ) -> Self:
        """Runs all stages of a checkpoint, or of several that make one cascade, in this process.

        Args:
            checkpoints: Names of such as ship with Carrara, or folders, in the order of the image's
                way; none for the default.
            checkpoint: A single one, by its keyword.

        Raises:
            MissingExtraError: The services are not installed.
        """
        single = () if checkpoint is None else (checkpoint,)
        names = [fspath(each) for each in (*checkpoints, *single)]
        running = await asyncio.to_thread(start_embedded, checkpoints=names)
        return await cls._beside(
            running,
            text_encoders=running.text_encoders,
            generators=running.generators,
            decoders=running.decoders,
        )

    @classmethod
    async def load(cls, path: str | PathLike[str], *, max_attempts: int | None = None) -> Self:
        """Connects to the stages of a manifest; those without an address run in this process.

        Args:
            path: Of a `cascade.toml`; see `carrara.manifest`.
            max_attempts: As of `connect`.

        Raises:
            InvalidArgumentError: The manifest cannot be read, or as of `connect`.
            ContractError: A stage has other weights than the manifest says, or as of `connect`.
        """
        manifest = read_manifest(path)
        to_run = [
            StageToRun(stage.stage, stage.checkpoint, stage.also_accepts)
            for stage in manifest.stages
            if stage.address is None and stage.checkpoint is not None
        ]
        running = await asyncio.to_thread(start_embedded, stages=to_run) if to_run else None
        started = {
            "text-encoder": iter(running.text_encoders if running else ()),
            "generator": iter(running.generators if running else ()),
            "decoder": iter(running.decoders if running else ()),
        }
        addresses: dict[str, list[str]] = {role: [] for role in started}
        for stage in manifest.stages:
            address = stage.address or next(started[stage.role], None)
            if address is None:
                if running is not None:
                    await asyncio.to_thread(running.close)
                raise InvalidArgumentError(f"{fspath(path)}: {stage.stage} is no {stage.role}")
            addresses[stage.role].append(address)
        cascade = await cls._beside(
            running,
            text_encoders=addresses["text-encoder"],
            generators=addresses["generator"],
            decoders=addresses["decoder"],
            max_attempts=max_attempts,
        )
        try:
            cascade._chain = held_to(cascade._chain, manifest)
        except BaseException:
            await cascade.aclose()
            raise
        return cascade

    @classmethod
    async def _beside(
        cls,
        running: RunningStages | None,
        *,
        max_attempts: int | None = None,
        **addresses: Sequence[str],
    ) -> Self:
        """Connects, and ends what runs in this process if that fails."""
        try:
            cascade = await cls.connect(**addresses, max_attempts=max_attempts)
        except BaseException:
            if running is not None:
                await asyncio.to_thread(running.close)
            raise
        cascade._running = running
        return cascade

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of all settings that this cascade takes."""
        stages = (*self._chain.encoders, *(step.stage for step in self._chain.steps))
        taken = {name for stage in stages for name in full_names(stage)}
        return tuple(sorted((taken | set(OF_THE_REQUEST)) & set(NAMES)))

    @property
    def descriptions(self) -> tuple[tuple[str, str, stage_pb2.DescribeResponse], ...]:
        """Role, address and description of every stage, in the order of the chain."""
        return tuple((stage.role, stage.address, stage.description) for stage in self._chain.stages)

    async def generate(
        self, prompt: str | None = None, **settings: Unpack[GenerateArguments]
    ) -> GenerationResult:
        """Paints pictures. What is not given takes the stages' default.

        Args:
            prompt: Any text, an empty one included; None only for a cascade without text encoders.
            settings: See `carrara.arguments.GenerateArguments`; `Cascade.settings` names those that
                this cascade takes.

        Raises:
            CarraraError: See `carrara.exceptions`; nothing has been computed if it is an
                `InvalidArgumentError` of this client.
        """
        async with aclosing(self.stream(prompt, **settings)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return event.result
        raise AssertionError("a stream ends with Finished or an exception")

    async def stream(
        self, prompt: str | None = None, **settings: Unpack[GenerateArguments]
    ) -> AsyncGenerator[Event, None]:
        """Paints pictures and tells how far they are; arguments and exceptions as of `generate`.

        Closing the iterator early cancels the running jobs.

        Yields:
            `Queued`, `Progress` and `Preview` as they come, in the end one `Finished`. Of the
            previews of one image that wait to be taken there is only the latest.
        """
        if self._closed:
            raise CascadeClosedError("the cascade has been closed")
        timeout_seconds = settings.get("timeout_seconds")
        if timeout_seconds is None:
            timeout_seconds = DEFAULT_TIMEOUT_SECONDS
        if not 0 < timeout_seconds < math.inf:
            raise refusal("timeout_seconds", timeout_seconds, "more than 0, and finite")
        wanted = read(prompt, settings)
        check(wanted, self._chain)

        events = UntakenEvents()
        work = asyncio.create_task(self._paint(wanted, timeout_seconds, events.put))
        work.add_done_callback(lambda _: events.end())
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)
        try:
            while (event := await events.take()) is not None:
                yield event
            if work.cancelled():
                raise CascadeClosedError("the cascade was closed while it painted")
            work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def aclose(self) -> None:
        """Cancels what runs and ends the connections, and the stages that `embedded` started."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(stage.close() for stage in self._chain.stages))
        running, self._running = self._running, None
        if running is not None:
            await asyncio.to_thread(running.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _paint(self, wanted: Prompt, timeout_seconds: float, emit: Emit) -> None:
        request = Request.lasting(timeout_seconds)
        outcome = Outcome(self._chain, wanted)
        first, *others = (step.stage for step in self._chain.steps)
        for stage in others:
            stage.refuse_if_full(request)
        room = asyncio.Semaphore(MAX_IMAGES_AT_ONCE)
        with ExitStack() as expected:
            expected.enter_context(first.expecting(request))
            conditionings = await _all(
                self._encode(index, wanted, outcome, request, emit)
                for index in range(len(self._chain.encoders))
            )

            async def paint_one(image_index: int) -> Image.Image:
                async with room:
                    expected.close()  # it comes now, and is counted there
                    return await self._paint_one(
                        image_index, wanted, conditionings, outcome, request, emit
                    )

            images = await _all(paint_one(index) for index in range(len(wanted.seeds)))
        elapsed_ms = 1000 * (timeout_seconds - request.remaining_seconds)
        emit(Finished(outcome.result(images, total_ms=elapsed_ms)))

    async def _encode(
        self, index: int, wanted: Prompt, outcome: Outcome, request: Request, emit: Emit
    ) -> stage_pb2.Conditioning:
        stage = self._chain.encoders[index]
        known = {argument.name for argument in stage.description.arguments}
        message = text_encoder_pb2.EncodeRequest(
            prompt=wanted.prompt,
            guidance=outcome.guided,
            priority=PRIORITIES[wanted.priority],
            stage_fingerprint=stage.description.fingerprint,
            **{  # type: ignore[arg-type]
                # The negative texts without guidance too: Kandinsky's prior paints of them then.
                name: value
                for name, value in wanted.texts.items()
                if name in known
            },
        )
        with outcome.calling(index) as on_attempt:
            result = await stage.encode(message, request=request, on_attempt=on_attempt)
        outcome.add(index, result)
        emit(Progress(stage.role, index, 1, 1, None))
        return result.conditioning

    async def _paint_one(
        self,
        image_index: int,
        wanted: Prompt,
        conditionings: Sequence[stage_pb2.Conditioning],
        outcome: Outcome,
        request: Request,
        emit: Emit,
    ) -> Image.Image:
        sample: stage_pb2.Sample | None = None
        for step in self._chain.steps:
            conditioning = None if step.encoder is None else conditionings[step.encoder]
            job = _job(
                step,
                wanted,
                conditioning,
                sample,
                seed=wanted.seeds[image_index],
                stages=[each.stage for each in self._chain.steps],
            )
            progress = Progress(step.stage.role, step.stage_index, 0, 1, image_index)

            def on_event(event: stage_pb2.Event, step: Step = step) -> None:
                nonlocal progress
                role, index = step.stage.role, step.stage_index
                match event.WhichOneof("event"):
                    case "queued":
                        queued = event.queued
                        start = queued.expected_start_ms
                        known = queued.HasField("expected_start_ms")
                        emit(
                            Queued(
                                role, index, queued.position, image_index, start if known else None
                            )
                        )
                    case "progress":
                        progress = replace(
                            progress,
                            step=event.progress.step,
                            total_steps=event.progress.num_steps,
                        )
                        emit(progress)
                    case "preview":
                        preview = _picture(event.preview.image, step.stage)
                        emit(Preview(role, index, event.preview.step, preview, image_index))

            with outcome.calling(step.stage_index) as on_attempt:
                result = await step.stage.run(
                    job, request=request, on_event=on_event, on_attempt=on_attempt
                )
            if progress.step < progress.total_steps:
                emit(replace(progress, step=progress.total_steps))
            outcome.add(step.stage_index, result)
            sample = result.sample
        assert sample is not None, "a chain has at least one generator"
        return _picture(sample.tensors["image"], self._chain.steps[-1].stage)


def _stages(
    role: str, field: str, addresses: Iterable[str], *, max_attempts: int | None
) -> list[Stage]:
    if isinstance(addresses, str):  # its characters would be taken for addresses
        raise refusal(field, addresses, "a list of addresses")
    return [Stage(address, role=role, max_attempts=max_attempts) for address in addresses]


def _job(
    step: Step,
    wanted: Prompt,
    conditioning: stage_pb2.Conditioning | None,
    sample: stage_pb2.Sample | None,
    *,
    seed: int,
    stages: Sequence[Stage],
) -> stage_pb2.Job:
    given = values_for(step.stage, wanted.arguments, stages=stages)
    return stage_pb2.Job(
        arguments=stage_pb2.Arguments(**given),  # type: ignore[arg-type]
        conditioning=conditioning,
        sample=sample,
        # Only the first stage starts from the seed; its random state then travels with its sample.
        random_state=stage_pb2.RandomState(seed=seed) if sample is None else None,
        consumer=step.consumer,
        output_format=(
            stage_pb2.OUTPUT_FORMAT_UNSPECIFIED
            if step.consumer is not None
            else stage_pb2.OUTPUT_FORMAT_UINT8
        ),
        stage_fingerprint=step.stage.description.fingerprint,
        resumable=step.stage.resumes_jobs,
        priority=PRIORITIES[wanted.priority],
        preview_interval_steps=(wanted.preview_interval_steps if step.stage.shows_previews else 0),
    )


def _picture(tensor: Tensor, stage: Stage) -> Image.Image:
    """Reads uint8 [H, W, 3]."""
    try:
        array = to_numpy(tensor)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise TensorError(f"it is {array.dtype} {list(array.shape)}, not uint8 [H, W, 3]")
    except TensorError as error:
        raise InternalStageError(
            f"{stage}: the picture cannot be read: {error}", role=stage.role, address=stage.address
        ) from error
    return Image.fromarray(array)


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs them at once; the first failure cancels the others and is raised by itself."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
