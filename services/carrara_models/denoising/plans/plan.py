"""What a plan is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

# Tensors that a job keeps from step to step, the newest first.
History = tuple[torch.Tensor, ...]
# x_t, the network's guided output, the history, noise and coefficients, to x_{t-1} and the history
# that the next step finds.
Step = Callable[
    [torch.Tensor, torch.Tensor, History, torch.Tensor | None, torch.Tensor],
    tuple[torch.Tensor, History],
]


@dataclass(frozen=True)
class Rule:
    """What a step computes; equal ones run together.

    Attributes:
        step: All of its tensors are [J, n, ...] but the coefficients, which are [k, J, 1, ...].
        looks_back: How many tensors of the history it is given; the job has at least as many.
        draws: Whether it is given noise, drawn by each job's own generator; else None.
    """

    step: Step
    looks_back: int = 0
    draws: bool = False


class PlannedStep(NamedTuple):
    """One step of a plan.

    Attributes:
        rule: What it computes.
        coefficients: Float32 [k].
        input_divisor: What x_t is divided by before the network sees it, a float32 scalar; None
            where it is seen as it is.
    """

    rule: Rule
    coefficients: torch.Tensor
    input_divisor: torch.Tensor | None = None


class StepPlan:
    """How the jobs of one scheduler, with one list of timesteps, go from step to step.

    A step's numbers are made when the first job comes to it: those of a thousand steps at once
    would hold up the jobs that are running.
    """

    def __init__(self, at: Callable[[int], PlannedStep], *, device: torch.device) -> None:
        """Makes no step yet.

        Args:
            at: Makes a step, on any device.
            device: Where the jobs are.
        """
        self._at, self._device = at, device
        self._steps: dict[int, PlannedStep] = {}

    def __getitem__(self, step: int) -> PlannedStep:
        if step not in self._steps:
            rule, coefficients, divisor = self._at(step)
            if divisor is not None:
                divisor = divisor.to(self._device)
            self._steps[step] = PlannedStep(rule, coefficients.to(self._device), divisor)
        return self._steps[step]


def numbers(*scalars: torch.Tensor) -> torch.Tensor:
    """Coefficients of a step."""
    return torch.stack([scalar.float() for scalar in scalars])


def predicted_original(
    prediction_type: str,
    x: torch.Tensor,
    output: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
) -> torch.Tensor:
    """x_0 as the network predicts it; x_t is alpha times x_0 and sigma times noise."""
    match prediction_type:
        case "epsilon":
            return (x - sigma * output) / alpha
        case "sample":
            return output
        case "v_prediction":
            return alpha * x - sigma * output
        case _:  # flow matching
            return x - sigma * output


def clipping(config: Any) -> float | None:
    """The bound of a predicted x_0; None where it has none."""
    return config.clip_sample_range if config.clip_sample else None


def clipped(original: torch.Tensor, bound: float | None) -> torch.Tensor:
    """A predicted x_0 in its bounds."""
    return original if bound is None else original.clamp(-bound, bound)
