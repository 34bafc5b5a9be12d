"""A denoising job: one image under way, with everything that changes from step to step its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from carrara_models.denoising import portable
from carrara_models.denoising.plans.makers import plan_for
from carrara_models.denoising.plans.plan import History, PlannedStep, StepPlan
from carrara_models.parts import JobState, Sample


@dataclass
class DenoisingJob:
    """One image inside a batch; an implementation of `carrara_models.parts.Job`.

    Attributes:
        latents: [n, ...]; x_t, then what the scheduler makes of it. n is 1; 2 for a prior that
            paints a negative embedding beside the positive one.
        inputs: What the network takes beside x_t and t, by its own names, [rows, ...] each; the
            negative half first.
        guidance_scale: None = guidance off.
        scheduler: Its own instance, with its timesteps set.
        torch_generator: Of the CPU.
        height: Pixels that the latents stand for.
        width: Pixels that the latents stand for.
        eta: Share of fresh noise in each DDIM step.
        guidance_rescale: 0 = off.
        resize_to: As of `carrara_models.parts.Sample`.
        picture: Low-resolution picture, noised, whose channels the network sees beside x_t,
            [n, 3, h, w]; None of a job that starts from noise alone.
        plan: Its steps, where many jobs can take them at once; None where its scheduler takes each.
        history: What the steps before have left for those to come, [n, ...] each, by the plan.
    """

    latents: torch.Tensor
    inputs: Mapping[str, torch.Tensor]
    guidance_scale: float | None
    scheduler: Any
    torch_generator: torch.Generator
    height: int
    width: int
    eta: float = 0.0
    guidance_rescale: float = 0.0
    resize_to: tuple[int, int] | None = None
    picture: torch.Tensor | None = None
    step: int = 0
    plan: StepPlan | None = field(init=False, default=None)
    history: History = field(init=False, default=())
    _known_options: frozenset[str] = field(init=False)
    _timesteps: Sequence[float] = field(init=False)

    def __post_init__(self) -> None:
        if self.latents.dtype == torch.float32 and not self.eta:
            self.plan = plan_for(self.scheduler)
        self._known_options = _step_parameters(type(self.scheduler))
        self._timesteps = self.scheduler.timesteps.tolist()

    @property
    def num_steps(self) -> int:
        """Network calls that it takes."""
        return len(self._timesteps)

    @property
    def rows(self) -> int:
        """Of the network's batch: twice as many as latents with guidance."""
        return self.latents.shape[0] * (1 if self.guidance_scale is None else 2)

    @property
    def group(self) -> tuple[object, ...]:
        """What the network's shapes force apart."""
        shapes = [(name, *tensor.shape[1:]) for name, tensor in self.inputs.items()]
        return (tuple(self.latents.shape[1:]), *sorted(shapes))

    @property
    def timestep(self) -> torch.Tensor:
        """The timestep that comes next, a scalar; with Euler and LMS it need not be whole."""
        return self.scheduler.timesteps[self.step]

    @property
    def timestep_number(self) -> float:
        """The same as a plain number."""
        return self._timesteps[self.step]

    @property
    def is_last_step(self) -> bool:
        """Whether the step that comes next is the last."""
        return self.step == self.num_steps - 1

    def doubled(self, x: torch.Tensor) -> list[torch.Tensor]:
        """An input of the network, [n, ...], as the parts of its rows: both halves alike."""
        return [x] if self.guidance_scale is None else [x, x]

    def plain_input(self) -> list[torch.Tensor]:
        """The latents, [n, ...] for each half, for networks that take them as they are."""
        return self.doubled(self.latents)

    def network_input(self) -> list[torch.Tensor]:
        """The latents, [n, ...] for each half, as the network wants them at this timestep."""
        return self.doubled(self.scaled(self.latents))

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """What the scheduler makes of an input of the network at this timestep."""
        if self.plan is None:
            return self.scheduler.scale_model_input(x, self.timestep)
        divisor = self.planned.input_divisor
        return x if divisor is None else x / divisor

    @property
    def planned(self) -> PlannedStep:
        """The step that comes next, of a job with a plan."""
        assert self.plan is not None
        return self.plan[self.step]

    def advance_by_scheduler(self, output: torch.Tensor) -> None:
        """Takes the network's output, guided where it has two halves, [n, ...], one step on."""
        self.latents = self.scheduler.step(
            output, self.timestep, self.latents, **self._step_options(), return_dict=False
        )[0]
        self.step += 1

    def sample(self, tensors: Mapping[str, torch.Tensor]) -> Sample:
        """Gives the sample of a job whose steps are done.

        Raises:
            RuntimeError: They are not.
        """
        if self.step < self.num_steps:
            raise RuntimeError(f"the job is at step {self.step} of {self.num_steps}")
        return Sample(
            tensors=tensors,
            height=self.height,
            width=self.width,
            random_state=self.torch_generator.get_state(),
            resize_to=self.resize_to,
        )

    def state(self) -> JobState | None:
        """Where it is; None of a scheduler whose state is not known."""
        return portable.state_of(self)

    def resume(self, state: JobState) -> None:
        """Goes, having just started, to where a job of an equal request was.

        Raises:
            JobStateError: The state is of no such job.
        """
        portable.resume(self, state)

    def _step_options(self) -> dict[str, Any]:
        """What `scheduler.step` takes of what pipelines pass it."""
        options: dict[str, Any] = {}
        if "eta" in self._known_options:
            options["eta"] = self.eta
        if "generator" in self._known_options:
            options["generator"] = self.torch_generator
        if "prev_timestep" in self._known_options and not self.is_last_step:
            # The scheduler cannot tell by itself: unCLIP's skips timesteps.
            options["prev_timestep"] = self.scheduler.timesteps[self.step + 1]
        return options


@cache
def _step_parameters(scheduler: type) -> frozenset[str]:
    return frozenset(inspect.signature(scheduler.step).parameters)  # type: ignore[attr-defined]
