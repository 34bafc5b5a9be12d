"""Plans of schedulers that count in sigmas: Euler, ancestral Euler, Heun and LMS."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from carrara_models.denoising.plans.plan import (
    PREDICTION_TYPES,
    History,
    PlannedStep,
    Rule,
    StepPlan,
    clipped,
    clipping,
    numbers,
)

LMS_ORDER = 4


def euler(scheduler: Any) -> StepPlan | None:
    """Algorithm 2, Karras et al. 2022, without churn."""
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        return None
    rule = _euler_rule(scheduler.config.prediction_type)

    def at(step: int) -> PlannedStep:
        sigma, after = scheduler.sigmas[step], scheduler.sigmas[step + 1]
        return _planned(rule, sigma, after - sigma)

    return StepPlan(at, device=scheduler.timesteps.device)


def euler_ancestral(scheduler: Any) -> StepPlan | None:
    """Euler's step down to a lower level, and fresh noise up to the wanted one."""
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        return None
    rule = _ancestral_rule(scheduler.config.prediction_type)

    def at(step: int) -> PlannedStep:
        sigma, after = scheduler.sigmas[step], scheduler.sigmas[step + 1]
        up = (after**2 * (sigma**2 - after**2) / sigma**2) ** 0.5
        down = (after**2 - up**2) ** 0.5
        return _planned(rule, sigma, down - sigma, up)

    return StepPlan(at, device=scheduler.timesteps.device)


def heun(scheduler: Any) -> StepPlan | None:
    """Algorithm 1, Karras et al. 2022; two calls make a step."""
    config = scheduler.config
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        return None
    predicts, corrects = (
        _heun_rule(config.prediction_type, clipping(config), corrects=corrects)
        for corrects in (False, True)
    )

    def at(call: int) -> PlannedStep:
        sigmas = scheduler.sigmas
        if call % 2 == 0:
            return _planned(predicts, sigmas[call], sigmas[call + 1] - sigmas[call])
        # What the scheduler divides the input by is the sigma of the call, twice in the list.
        sigma, after = sigmas[call - 1], sigmas[call]
        return _planned(corrects, after, after - sigma)

    return StepPlan(at, device=scheduler.timesteps.device)


def lms(scheduler: Any) -> StepPlan | None:
    """Linear multistep over Euler's derivatives."""
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        return None

    def at(step: int) -> PlannedStep:
        order = min(step + 1, LMS_ORDER)
        weights = [scheduler.get_lms_coefficient(order, step, index) for index in range(order)]
        sigma = scheduler.sigmas[step]
        rule = _lms_rule(scheduler.config.prediction_type, order=order)
        return _planned(rule, sigma, *map(torch.as_tensor, weights))

    return StepPlan(at, device=scheduler.timesteps.device)


def _planned(rule: Rule, seen: torch.Tensor, *others: torch.Tensor) -> PlannedStep:
    """A step whose network sees x at the noise level `seen`."""
    scaled = seen**2 + 1
    of_original = (seen, -seen / scaled**0.5, scaled)
    return PlannedStep(rule, numbers(*of_original, *others), scaled**0.5)


def _original(
    prediction_type: str, x: torch.Tensor, output: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    """The predicted x_0."""
    sigma, of_output, divisor, *_ = c
    if prediction_type == "epsilon":
        return x - sigma * output
    if prediction_type == "sample":
        return output
    return output * of_output + x / divisor


@lru_cache
def _euler_rule(prediction_type: str) -> Rule:
    def step(
        x: torch.Tensor, output: torch.Tensor, _: History, __: Any, c: torch.Tensor
    ) -> tuple[torch.Tensor, History]:
        sigma, *_of_original, way = c
        original = _original(prediction_type, x, output, c)
        return x + (x - original) / sigma * way, ()

    return Rule(step)


@lru_cache
def _ancestral_rule(prediction_type: str) -> Rule:
    def step(
        x: torch.Tensor, output: torch.Tensor, _: History, noise: Any, c: torch.Tensor
    ) -> tuple[torch.Tensor, History]:
        sigma, *_of_original, way, up = c
        original = _original(prediction_type, x, output, c)
        return x + (x - original) / sigma * way + noise * up, ()

    return Rule(step, draws=True)


@lru_cache
def _heun_rule(prediction_type: str, bound: float | None, *, corrects: bool) -> Rule:
    def step(
        x: torch.Tensor, output: torch.Tensor, history: History, _: Any, c: torch.Tensor
    ) -> tuple[torch.Tensor, History]:
        sigma, *_of_original, way = c
        original = clipped(_original(prediction_type, x, output, c), bound)
        derivative = (x - original) / sigma
        if not corrects:
            return x + derivative * way, (derivative, x)
        before, start = history
        return start + (before + derivative) / 2 * way, ()

    return Rule(step, looks_back=2 if corrects else 0)


@lru_cache
def _lms_rule(prediction_type: str, *, order: int) -> Rule:
    def step(
        x: torch.Tensor, output: torch.Tensor, history: History, _: Any, c: torch.Tensor
    ) -> tuple[torch.Tensor, History]:
        sigma, weights = c[0], c[3:]
        derivatives = ((x - _original(prediction_type, x, output, c)) / sigma, *history)
        moves = (weight * move for weight, move in zip(weights, derivatives, strict=True))
        return x + sum(moves), derivatives[: LMS_ORDER - 1]

    return Rule(step, looks_back=order - 1)
