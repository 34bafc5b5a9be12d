"""A denoising job: one image under way, with everything that changes from step to step its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from carrara_models.errors import NumericalError
from carrara_models.parts import Sample


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
    _known_options: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._known_options = frozenset(inspect.signature(self.scheduler.step).parameters)

    @property
    def num_steps(self) -> int:
        """Network calls that it takes."""
        return len(self.scheduler.timesteps)

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
    def is_last_step(self) -> bool:
        """Whether the step that comes next is the last."""
        return self.step == self.num_steps - 1

    def doubled_latents(self) -> torch.Tensor:
        """The latents [rows, ...], both halves alike."""
        return self.latents if self.guidance_scale is None else torch.cat([self.latents] * 2)

    def network_input(self) -> torch.Tensor:
        """The latents [rows, ...] as the network wants them at this timestep."""
        return self.scheduler.scale_model_input(self.doubled_latents(), self.timestep)

    def advance(self, output: torch.Tensor) -> None:
        """Takes the network's output, guided where it has two halves, [n, ...], one step on.

        Raises:
            NumericalError: The new latents hold NaN or infinity.
        """
        self.latents = self.scheduler.step(
            output, self.timestep, self.latents, **self._step_options(), return_dict=False
        )[0]
        self.step += 1
        if not torch.isfinite(self.latents).all():
            raise NumericalError("latents", self.step)

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

    def _step_options(self) -> dict[str, Any]:
        """What `scheduler.step` takes of what pipelines pass it."""
        options = {
            "eta": self.eta,
            "generator": self.torch_generator,
            # Where the scheduler cannot tell by itself, as unCLIP's skips timesteps.
            "prev_timestep": None if self.is_last_step else self.scheduler.timesteps[self.step + 1],
        }
        return {name: value for name, value in options.items() if name in self._known_options}
