"""Plans of flow matching: Euler and Heun on straight paths (Lipman et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch

from carrara_models.denoising.plans.plan import History, PlannedStep, Rule, StepPlan, numbers


def flow_euler(scheduler: Any) -> StepPlan | None:
    """Straight on, as far as the sigmas lie apart."""
    if scheduler.config.stochastic_sampling:
        return None

    def at(step: int) -> PlannedStep:
        return PlannedStep(_EULER, numbers(scheduler.sigmas[step + 1] - scheduler.sigmas[step]))

    return StepPlan(at, device=scheduler.timesteps.device)


def flow_heun(scheduler: Any) -> StepPlan:
    """Straight on, and again with the mean of both ends' velocities."""

    def at(call: int) -> PlannedStep:
        sigmas = scheduler.sigmas
        if call % 2 == 0:
            return PlannedStep(_PREDICTION, numbers(sigmas[call], sigmas[call + 1] - sigmas[call]))
        return PlannedStep(_CORRECTION, numbers(sigmas[call], sigmas[call] - sigmas[call - 1]))

    return StepPlan(at, device=scheduler.timesteps.device)


def _euler(
    x: torch.Tensor, output: torch.Tensor, _: History, __: Any, c: torch.Tensor
) -> tuple[torch.Tensor, History]:
    (way,) = c
    return x + way * output, ()


def _predict(
    x: torch.Tensor, output: torch.Tensor, _: History, __: Any, c: torch.Tensor
) -> tuple[torch.Tensor, History]:
    sigma, way = c
    derivative = _derivative(x, output, sigma)
    return x + derivative * way, (derivative, x)


def _correct(
    x: torch.Tensor, output: torch.Tensor, history: History, _: Any, c: torch.Tensor
) -> tuple[torch.Tensor, History]:
    sigma, way = c
    before, start = history
    return start + 0.5 * (before + _derivative(x, output, sigma)) * way, ()


def _derivative(x: torch.Tensor, output: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The output, but for what rounds when x_0 is predicted and taken off again."""
    return (x - (x - output * sigma)) / sigma


_EULER = Rule(_euler)
_PREDICTION, _CORRECTION = Rule(_predict), Rule(_correct, looks_back=2)
