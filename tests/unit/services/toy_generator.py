"""A second implementation of the generator's seam: plain arithmetic, and failures on demand.

The latents of a job are the running product of what its steps made of them, so that a picture shows
each step, the seed and the conditioning, and nothing of its neighbours.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from carrara_models.contracts import Argument, Component, Contract, Kind, Port, TensorSpec
from carrara_models.errors import JobStateError, NumericalError
from carrara_models.parts import DenoisingRequest, JobState, Preview, Sample

CONDITIONING = Contract(
    kind=Kind.CONDITIONING,
    space="text",
    tensors=(
        TensorSpec("prompt_embeds", (1, 0, 2)),
        TensorSpec("negative_prompt_embeds", (1, 0, 2), required=False),
    ),
)


@dataclass
class ToyJob:
    request: DenoisingRequest
    latents: torch.Tensor
    num_steps: int
    step: int = 0
    unportable: frozenset[int] = frozenset()

    @property
    def rows(self) -> int:
        return len(self.request.conditioning)

    @property
    def group(self) -> tuple[object, ...]:
        return (self.request.height,)

    @property
    def name(self) -> int:
        assert isinstance(self.request.random_state, int)
        return self.request.random_state

    def state(self) -> JobState | None:
        if self.name in self.unportable:
            return None
        return JobState(self.step, {"latents": self.latents}, torch.zeros(0))

    def resume(self, state: JobState) -> None:
        if state.step >= self.num_steps:
            raise JobStateError("step", f"{state.step} of {self.num_steps}")
        self.step, self.latents = state.step, state.tensors["latents"]


@dataclass
class ToyGenerator:
    """Jobs are known by their seed.

    Attributes:
        poisoned: Seeds at which the network fails, whatever shares the call.
        diverging: Seeds whose latents become NaN in their second step.
        refused: Seeds that do not start.
        stuck: Seeds with which nobody in the batch takes a step.
        unportable: Seeds whose jobs give no state.
        memory_rows: Rows for which there is memory in one call.
        huge: Seeds for which there is never enough.
        turn: If given, each network call waits for it to be released once.
        calls: The seeds of each network call.
    """

    poisoned: frozenset[int] = frozenset()
    diverging: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    stuck: frozenset[int] = frozenset()
    unportable: frozenset[int] = frozenset()
    memory_rows: int = 1000
    huge: frozenset[int] = frozenset()
    turn: threading.Semaphore | None = None
    calls: list[list[int]] = field(default_factory=list)

    fingerprint: str = "toy"
    family: str = "toy"
    stage: str = "generator"
    components: tuple[Component, ...] = ()
    consumes: tuple[Port, ...] = (Port(CONDITIONING),)
    produces: tuple[Contract, ...] = (Contract(kind=Kind.LATENTS, space="vae", size_factor=8),)
    arguments: tuple[Argument, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    preview: Preview | None = None

    def rows(self, request: DenoisingRequest) -> int:
        return len(request.conditioning)

    def start(self, request: DenoisingRequest) -> ToyJob:
        job = ToyJob(
            request=request,
            latents=torch.full((1, 1), 1.0 + int(request.random_state)),
            num_steps=request.num_inference_steps or 3,
            unportable=self.unportable,
        )
        if job.name in self.refused:
            raise ValueError(f"job {job.name} does not start")
        return job

    def predict(self, jobs: Sequence[ToyJob]) -> list[torch.Tensor]:
        if self.turn is not None:
            self.turn.acquire()
        self.calls.append([job.name for job in jobs])
        assert len({job.group for job in jobs}) == 1
        rows = sum(job.rows for job in jobs)
        if rows > self.memory_rows or self.huge.intersection(job.name for job in jobs):
            raise torch.OutOfMemoryError(f"no memory for {rows} rows")
        if poisoned := self.poisoned.intersection(job.name for job in jobs):
            raise RuntimeError(f"no kernel for {sorted(poisoned)}")
        return [job.latents * 1.25 + job.step for job in jobs]

    def advance(
        self, jobs: Sequence[ToyJob], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        if stuck := self.stuck.intersection(job.name for job in jobs):
            raise RuntimeError(f"no step for {sorted(stuck)}")
        errors: list[Exception | None] = []
        for job, output in zip(jobs, outputs, strict=True):
            job.latents = output
            job.step += 1
            diverges = job.name in self.diverging and job.step == 2
            errors.append(NumericalError("latents", job.step) if diverges else None)
        return errors

    def finish(self, job: ToyJob) -> Sample:
        assert job.step == job.num_steps
        return Sample(tensors={"latents": job.latents}, height=8, width=8)


def toy_request(seed: int, *, steps: int = 3, guided: bool = False, height: int = 8):
    """A job for the toy; its seed is its name."""
    conditioning = {"prompt_embeds": torch.ones(1, 1, 2)}
    if guided:
        conditioning["negative_prompt_embeds"] = torch.zeros(1, 1, 2)
    request = DenoisingRequest(conditioning=conditioning, random_state=seed, height=height)
    return replace(request, num_inference_steps=steps)


def alone(seed: int, *, steps: int = 3) -> float:
    """What the job's latents are when nothing shares its batch."""
    latents = 1.0 + seed
    for step in range(steps):
        latents = latents * 1.25 + step
    return latents
