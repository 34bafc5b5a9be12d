"""The engine of decoders that do not denoise: from samples to pixels."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Hashable, Sequence
from dataclasses import replace

import torch

from carrara_models.contracts import Kind
from carrara_models.parts import Decoder, DenoisingRequest, Sample
from carrara_models.pixels import handed_on
from carrara_services.admission.demand import Demand
from carrara_services.admission.following import end_of, follow
from carrara_services.admission.happenings import Finished, Suspended, UnderWay
from carrara_services.admission.line import WaitingLine
from carrara_services.decoder import ROLE
from carrara_services.work import Work
from carrara_services.worker import Worker

# Latent cells a side of the warm-up's sample.
_WARM_UP_CELLS = 8


class DecoderEngine:
    """One decoder and the thread that it works in.

    In exact numerics one image at a time, since a VAE's numbers depend on what shares its batch.

    Attributes:
        resumable: Its work has no steps.
        part: The decoder itself.
        worker: Where its work waits and runs.
    """

    resumable = False

    def __init__(
        self,
        part: Decoder,
        *,
        max_queue_jobs: int,
        max_queue_seconds: float = math.inf,
        max_batch_rows: int = 1,
        max_wait_seconds: float = 0.0,
    ) -> None:
        self.part = part
        self.worker = Worker(
            self._decode,
            name="decoding",
            max_queue_jobs=max_queue_jobs,
            max_queue_seconds=max_queue_seconds,
            group=_shapes,
            max_batch=1 if part.numerics.exact else max_batch_rows,
            max_wait_seconds=max_wait_seconds,
        )

    @property
    def max_batch_rows(self) -> int:
        """How many images are decoded together at most."""
        return self.worker.max_batch

    @property
    def line(self) -> WaitingLine:
        """Where its work waits."""
        return self.worker.line

    @property
    def rows(self) -> int:
        """Images that are being decoded."""
        return self.worker.line.running

    def run(
        self, work: Work, *, deadline: float | None
    ) -> AsyncIterator[UnderWay | Finished | Suspended]:
        """Decodes one sample and yields what happens; the result is a `Sample` of pixels."""
        assert work.resume is None, "who calls has seen that it is not resumable"
        sample = work.request.sample
        pixels = 1 if sample is None else max(1, sample.height * sample.width)
        demand = Demand(cost=float(pixels), priority=work.priority)
        return follow(self.line, work, deadline=deadline, stage=ROLE, demand=demand)

    async def warm_up(self) -> None:
        """Decodes a black sample, on the path that requests take; twice, as the first is cold."""
        contract = self.part.consumes[0].contract
        side = _WARM_UP_CELLS * contract.size_factor
        sample = Sample(
            tensors={
                spec.name: torch.zeros([size or _WARM_UP_CELLS for size in spec.shape])
                for spec in contract.tensors
            },
            height=side,
            width=side,
        )
        request = DenoisingRequest(conditioning={}, random_state=0, sample=sample)
        for _ in range(2):
            self.line.forget_pace()
            await end_of(self.run(Work(request), deadline=None))

    def hand_back(self) -> None:
        """Refuses new work and hands back what waits; what runs is finished."""
        self.worker.line.close()

    def close(self) -> None:
        """Ends the worker's thread; what runs is finished."""
        self.worker.close()

    @torch.inference_mode()
    def _decode(self, works: Sequence[Work]) -> list[Sample | Exception]:
        decoded = self.part.decode([_sample(work) for work in works])
        return [
            pixels if isinstance(pixels, Exception) else _handed_on(pixels, work)
            for pixels, work in zip(decoded, works, strict=True)
        ]


def _sample(work: Work) -> Sample:
    assert work.request.sample is not None, "the servicer has seen to it"
    return work.request.sample


def _shapes(work: Work) -> Hashable:
    return tuple((name, tensor.shape) for name, tensor in sorted(_sample(work).tensors.items()))


def _handed_on(pixels: torch.Tensor, work: Work) -> Sample:
    consumer = work.request.consumer
    if consumer is not None and consumer.kind is Kind.PIXELS:
        pixels = handed_on(pixels)
    height, width = pixels.shape[2:]
    return replace(
        _sample(work), tensors={"pixels": pixels}, height=height, width=width, resize_to=None
    )
