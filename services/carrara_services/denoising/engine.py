"""A denoiser and the loop that runs its jobs: the engine of generators and of super-resolution."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

import torch

from carrara_models.acceleration.networks import networks_of
from carrara_models.acceleration.warm_up import WarmedForward, warming_up
from carrara_models.contracts import Contract, Kind
from carrara_models.parts import Denoiser, DenoisingRequest, Sample
from carrara_services.admission.following import end_of, follow
from carrara_services.admission.happenings import Finished, Suspended, UnderWay
from carrara_services.admission.line import WaitingLine
from carrara_services.denoising.demand import demand_of
from carrara_services.denoising.loop import DenoisingLoop
from carrara_services.denoising.memory_probe import DeviceMemory, rows_that_fit
from carrara_services.device_memory import is_out_of_memory, release_memory
from carrara_services.work import Work

# Of a consumer that the warm-up invents for a denoiser without the VAE.
_WARM_UP_SIZE_FACTOR = 8
# Cells a side: as few as a UNet that halves them three times takes.
_WARM_UP_CELLS = 8
# CLIP's number of them. Not 1, for which torch compiles something of its own, and odd: a number
# that rows have too, it would take for the same.
_WARM_UP_TOKENS = 77
_MAX_WARM_UP_SECONDS = 10.0


class DenoisingEngine:
    """One denoiser and the loop that runs its jobs.

    Args:
        memory: What the batch has to fit into; None: it may have all of `max_batch_rows`.

    Attributes:
        resumable: Whether its jobs may end suspended.
        part: The denoiser itself.
        loop: Where its jobs wait and run.
    """

    resumable = True

    def __init__(
        self,
        part: Denoiser,
        *,
        role: str,
        max_queue_jobs: int,
        max_queue_seconds: float = math.inf,
        max_batch_rows: int,
        progress_interval_seconds: float = 0.0,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.part = part
        self._memory = memory
        self.loop = DenoisingLoop(
            part,
            max_queue_jobs=max_queue_jobs,
            max_queue_seconds=max_queue_seconds,
            max_batch_rows=max_batch_rows,
            progress_interval_seconds=progress_interval_seconds,
        )
        self._role = role

    @property
    def line(self) -> WaitingLine:
        """Where its jobs wait."""
        return self.loop.line

    @property
    def rows(self) -> int:
        """Rows of the jobs that are running."""
        return self.loop.rows

    @property
    def max_batch_rows(self) -> int:
        """How many the batch may have."""
        return self.loop.max_batch_rows

    def run(
        self, work: Work, *, deadline: float | None
    ) -> AsyncIterator[UnderWay | Finished | Suspended]:
        """Runs one job and yields what happens; the result is a `carrara_models.parts.Sample`.

        Resumable work may end suspended, with a `carrara_models.parts.JobState`.
        """
        demand = demand_of(self.part, work)
        return follow(self.line, work, deadline=deadline, stage=self._role, demand=demand)

    def hand_back(self) -> None:
        """Refuses new jobs and hands back what can go on elsewhere."""
        self.loop.hand_back()

    async def warm_up(self) -> None:
        """Makes the smallest picture in two steps, on the path that requests take.

        Networks that are to be compiled are compiled first, for pictures of the default size. The
        smallest is made twice, as what was cold says nothing of the loop's pace. Then one of the
        default size, from which the loop knows its pace, unless that takes long.

        In the end, rows of the default size are fitted into the memory.
        """
        smallest = warm_up_request(self.part)
        request = replace(smallest, height=None, width=None)
        networks = networks_of(self.part).values()  # type: ignore[arg-type]
        if any(isinstance(network.forward, WarmedForward) for network in networks):
            await asyncio.to_thread(self._compile, request, networks)
        for _ in range(2):
            self.line.forget_pace()
            await end_of(self.run(Work(smallest), deadline=None))
        expected = self.line.seconds(demand_of(self.part, Work(request)).cost)
        if request != smallest and expected is not None and expected < _MAX_WARM_UP_SECONDS:
            self.line.forget_pace()
            await end_of(self.run(Work(request), deadline=None))
        if self._memory is not None:
            self.line.width = await asyncio.to_thread(self._rows_that_fit, request, self._memory)

    @torch.inference_mode()
    def _rows_that_fit(self, request: DenoisingRequest, memory: DeviceMemory) -> int:
        job = self.part.start(request)
        try:
            return rows_that_fit(
                lambda rows: self.part.predict([job] * (rows // job.rows)),
                memory=memory,
                rows=job.rows,
                most=self.max_batch_rows,
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        release_memory()
        return job.rows

    @torch.inference_mode()
    def _compile(self, request: DenoisingRequest, networks: Iterable[torch.nn.Module]) -> None:
        """For as many rows as the batch may have."""
        job = self.part.start(request)
        calls = 1 if self.part.device.type == "cpu" else 2  # what is recorded is so the second time
        with warming_up(networks):
            for rows in self.part.numerics.row_buckets or (max(2, job.rows),):
                if job.rows <= rows <= max(self.max_batch_rows, job.rows):
                    for _ in range(calls):
                        self.part.predict([job] * (rows // job.rows))

    def close(self) -> None:
        """Ends the loop's thread; what runs is finished."""
        self.loop.close()


def warm_up_request(part: Denoiser, *, tokens: int = _WARM_UP_TOKENS) -> DenoisingRequest:
    """The smallest job that a denoiser takes: two steps, guidance on, and nothing to see.

    Args:
        tokens: Of the text, where their number is free.
    """
    arguments = {argument.name: argument for argument in part.arguments}
    inputs = {port.contract.kind: port.contract for port in part.consumes}
    conditioning = inputs.pop(Kind.CONDITIONING, None)
    produced = part.produces[0]
    consumer, factor = None, 1
    if produced.kind is Kind.LATENTS:
        factor = produced.size_factor or _WARM_UP_SIZE_FACTOR
        consumer = replace(
            produced, size_factor=factor, scaling_factor=produced.scaling_factor or 1.0
        )
    settings: dict[str, Any] = {}
    for name in ("height", "width"):
        if name in arguments:
            smallest = int(arguments[name].minimum or 1)
            settings[name] = smallest * -(-_WARM_UP_CELLS * factor // smallest)
    if "use_resolution_binning" in arguments:  # it would paint at full size
        settings["use_resolution_binning"] = False
    return DenoisingRequest(
        conditioning={} if conditioning is None else _blank(conditioning, part.dtype, free=tokens),
        random_state=0,
        consumer=consumer,
        sample=None if not inputs else _blank_sample(next(iter(inputs.values())), part.dtype),
        num_inference_steps=2,
        **settings,
    )


def _blank(contract: Contract, dtype: torch.dtype, *, free: int) -> Any:
    """Zeros in place of numbers, ones in place of masks.

    Where any size does, it is 1 in the first axis and `free` in the others.
    """
    shapes = {
        spec.name: [spec.shape[0] or 1, *(size or free for size in spec.shape[1:])]
        for spec in contract.tensors
    }
    return {
        name: torch.ones(shape, dtype=torch.bool)
        if name.endswith("mask")
        else torch.zeros(shape, dtype=dtype)
        for name, shape in shapes.items()
    }


def _blank_sample(contract: Contract, dtype: torch.dtype) -> Sample:
    has_size = contract.kind is not Kind.IMAGE_EMBEDS
    side = _WARM_UP_CELLS * (contract.size_factor or 1) if has_size else 0
    return Sample(_blank(contract, dtype, free=_WARM_UP_CELLS), height=side, width=side)
