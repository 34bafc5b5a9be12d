"""The generator's engine: the denoising loop around one part, and requests made of tensors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import torch

from carrara_models.contracts import Contract
from carrara_models.denoising.random import torch_generator
from carrara_models.errors import BadFieldError
from carrara_models.parts import DenoisingRequest, Generator
from carrara_services.admission import Finished, Progress, Queued, follow
from carrara_services.denoising.loop import DenoisingLoop
from carrara_services.generator import ROLE
from carrara_services.refusals import RandomStateError

# Of a consumer that the warm-up invents for a generator without the VAE.
_WARM_UP_SIZE_FACTOR = 8
# Latent cells a side: as few as a UNet that halves them three times takes.
_WARM_UP_CELLS = 8


class GeneratorEngine:
    """One generator and the loop that runs its jobs.

    Attributes:
        part: The generator itself.
        loop: Where its jobs wait and run.
    """

    def __init__(self, part: Generator, *, max_queue_jobs: int, max_batch_rows: int) -> None:
        self.part = part
        self.loop = DenoisingLoop(
            part, max_queue_jobs=max_queue_jobs, max_batch_rows=max_batch_rows
        )

    def generate(
        self, request: DenoisingRequest, *, deadline: float | None
    ) -> AsyncIterator[Queued | Progress | Finished]:
        """Runs one job and yields what happens; the result is a `carrara_models.parts.Sample`."""
        return follow(self.loop.line, request, deadline=deadline, stage=ROLE)

    async def warm_up(self) -> None:
        """Makes the smallest picture in two steps, on the path that requests take."""
        request = warm_up_request(self.part)
        async with contextlib.aclosing(self.generate(request, deadline=None)) as happenings:  # type: ignore[type-var]
            async for _ in happenings:
                pass


def warm_up_request(part: Generator) -> DenoisingRequest:
    """The smallest job that a generator takes: zeros for embeddings, two steps, guidance on."""
    conditioning = {
        spec.name: torch.zeros([size or 1 for size in spec.shape], dtype=part.dtype)
        for port in part.consumes
        for spec in port.contract.tensors
    }
    produced = part.produces[0]
    arguments = {argument.name: argument for argument in part.arguments}
    factor = produced.size_factor or _WARM_UP_SIZE_FACTOR

    def side(name: str) -> int:
        smallest = arguments[name].minimum if name in arguments else None
        return max(int(smallest or 0), _WARM_UP_CELLS * factor)

    return DenoisingRequest(
        conditioning=conditioning,
        random_state=0,
        consumer=replace(
            produced, size_factor=factor, scaling_factor=produced.scaling_factor or 1.0
        ),
        num_inference_steps=2,
        height=side("height"),
        width=side("width"),
    )


def check_random_state(state: torch.Tensor, *, field: str) -> None:
    """Refuses bytes that are no state of a torch generator, before the job waits in the line.

    Raises:
        RandomStateError: What is wrong with them.
    """
    try:
        torch_generator(state)
    except BadFieldError as error:
        raise RandomStateError(field, f"{error.value} is not {error.allowed}") from error


def sample_contract(part: Generator, *, consumer: Contract | None) -> Contract:
    """What a job's sample is: this part's contract, with the factors that its consumer brought."""
    produced = part.produces[0]
    if consumer is None or produced.size_factor:
        return produced
    return replace(
        produced,
        size_factor=consumer.size_factor,
        scaling_factor=consumer.scaling_factor,
        shift_factor=consumer.shift_factor,
    )
