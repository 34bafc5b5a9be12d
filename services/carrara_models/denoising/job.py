"""A denoising job: one image under way, with everything that changes from step to step its own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch

from carrara_models.denoising.guidance import guided
from carrara_models.errors import NumericalError


@dataclass
class DenoisingJob:
    """One image inside a batch; an implementation of `carrara_models.parts.Job`.

    Attributes:
        latents: [1, C, h, w]; x_t, then what the scheduler makes of it.
        prompt_embeds: [rows, L, D]; the negative half first.
        guidance_scale: None = guidance off.
        scheduler: Its own instance, with its timesteps set.
        torch_generator: Of the CPU.
        num_inference_steps: As asked for; `num_steps` counts the network's calls.
        height: Pixels that the latents stand for.
        width: Pixels that the latents stand for.
    """

    latents: torch.Tensor
    prompt_embeds: torch.Tensor
    guidance_scale: float | None
    scheduler: Any
    torch_generator: torch.Generator
    num_inference_steps: int
    height: int
    width: int
    step: int = 0
    _step_options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self._step_options = _step_options(self.scheduler, self.torch_generator)

    @property
    def num_steps(self) -> int:
        """Network calls that it takes."""
        return len(self.scheduler.timesteps)

    @property
    def rows(self) -> int:
        """2 with guidance, else 1."""
        return 1 if self.guidance_scale is None else 2

    @property
    def group(self) -> tuple[object, ...]:
        """What the network's shapes force apart."""
        return (*self.latents.shape[1:], *self.prompt_embeds.shape[1:])

    @property
    def timestep(self) -> torch.Tensor:
        """The timestep that comes next, a scalar; with Euler and LMS it need not be whole."""
        return self.scheduler.timesteps[self.step]

    def network_input(self) -> torch.Tensor:
        """The latents [rows, C, h, w] as the network wants them at this timestep."""
        latents = self.latents if self.rows == 1 else torch.cat([self.latents] * 2)
        return self.scheduler.scale_model_input(latents, self.timestep)

    def advance(self, output: torch.Tensor) -> None:
        """Takes the network's output [rows, C, h, w] one step on.

        Raises:
            NumericalError: The new latents hold NaN or infinity.
        """
        if self.guidance_scale is not None:
            output = guided(output, self.guidance_scale)
        self.latents = self.scheduler.step(
            output, self.timestep, self.latents, **self._step_options, return_dict=False
        )[0]
        self.step += 1
        if not torch.isfinite(self.latents).all():
            raise NumericalError("latents", self.step)


def _step_options(scheduler: Any, torch_generator: torch.Generator) -> dict[str, Any]:
    """What `scheduler.step` takes of what pipelines pass: eta is 0, so that DDIM draws nothing."""
    options = {"eta": 0.0, "generator": torch_generator}
    known = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in options.items() if name in known}
