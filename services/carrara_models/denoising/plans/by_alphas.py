"""Plans of schedulers that count in products of alphas: DDIM, DDPM and PNDM."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from carrara_models.denoising.plans.plan import (
    PREDICTION_TYPES,
    History,
    PlannedStep,
    Rule,
    Step,
    StepPlan,
    clipped,
    clipping,
    numbers,
    predicted_original,
)

FIXED_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


def ddim(scheduler: Any) -> StepPlan | None:
    """Eq. 12, Song et al. 2021, with an eta of 0."""
    config = scheduler.config
    if config.thresholding or config.prediction_type not in PREDICTION_TYPES:
        return None
    rule = _ddim_rule(config.prediction_type, clipping(config))
    stride = config.num_train_timesteps // scheduler.num_inference_steps
    timesteps = scheduler.timesteps.tolist()

    def at(step: int) -> PlannedStep:
        alpha, alpha_before = _alphas(scheduler, timesteps[step], timesteps[step] - stride)
        beta = 1 - alpha
        direction = (1 - alpha_before) ** 0.5  # an eta of 0 takes nothing off
        return PlannedStep(rule, numbers(alpha**0.5, beta**0.5, alpha_before**0.5, direction))

    return StepPlan(at, device=scheduler.timesteps.device)


def ddpm(scheduler: Any) -> StepPlan | None:
    """Algorithm 2, Ho et al. 2020, where the network predicts no variance."""
    config, variance_type = scheduler.config, scheduler.variance_type
    if (
        config.thresholding
        or config.prediction_type not in PREDICTION_TYPES
        or variance_type not in FIXED_VARIANCES
    ):
        return None

    def at(step: int) -> PlannedStep:
        timestep = scheduler.timesteps[step]
        before = scheduler.previous_timestep(timestep)
        alpha = scheduler.alphas_cumprod[timestep]
        alpha_before = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.one
        beta, beta_before = 1 - alpha, 1 - alpha_before
        current_alpha = alpha / alpha_before
        coefficients = [
            alpha**0.5,
            beta**0.5,
            (alpha_before**0.5 * (1 - current_alpha)) / beta,
            current_alpha**0.5 * beta_before / beta,
        ]
        draws = bool(timestep > 0)
        if draws:
            variance = scheduler._get_variance(timestep)
            coefficients.append(variance if variance_type == "fixed_small_log" else variance**0.5)
        rule = _ddpm_rule(config.prediction_type, clipping(config), draws=draws)
        return PlannedStep(rule, numbers(*coefficients))

    return StepPlan(at, device=scheduler.timesteps.device)


def pndm(scheduler: Any) -> StepPlan | None:
    """Sec. 3.3, Liu et al. 2022, as Stable Diffusion has it: without Runge-Kutta rounds."""
    config = scheduler.config
    if not config.skip_prk_steps or config.prediction_type not in ("epsilon", "v_prediction"):
        return None
    stride = config.num_train_timesteps // scheduler.num_inference_steps
    timesteps = scheduler.timesteps.tolist()

    def at(call: int) -> PlannedStep:
        # The second call goes over the first step again, from the end that it has shown.
        start = timesteps[call] + stride if call == 1 else timesteps[call]
        alpha, alpha_before = _alphas(scheduler, start, start - stride)
        beta, beta_before = 1 - alpha, 1 - alpha_before
        coefficients = numbers(
            alpha**0.5,
            beta**0.5,
            (alpha_before / alpha) ** 0.5,
            alpha_before - alpha,
            alpha * beta_before**0.5 + (alpha * beta * alpha_before) ** 0.5,
        )
        return PlannedStep(_pndm_rule(config.prediction_type, call=min(call, 4)), coefficients)

    return StepPlan(at, device=scheduler.timesteps.device)


@lru_cache
def _ddim_rule(prediction_type: str, bound: float | None) -> Rule:
    def step(
        x: torch.Tensor, output: torch.Tensor, _: History, __: Any, c: torch.Tensor
    ) -> tuple[torch.Tensor, History]:
        alpha, beta, alpha_before, direction = c
        original = predicted_original(prediction_type, x, output, alpha, beta)
        if prediction_type == "epsilon":
            epsilon = output
        elif prediction_type == "sample":
            epsilon = (x - alpha * output) / beta
        else:
            epsilon = alpha * output + beta * x
        return alpha_before * clipped(original, bound) + direction * epsilon, ()

    return Rule(step)


@lru_cache
def _ddpm_rule(prediction_type: str, bound: float | None, *, draws: bool) -> Rule:
    def step(
        x: torch.Tensor, output: torch.Tensor, _: History, noise: Any, c: torch.Tensor
    ) -> tuple[torch.Tensor, History]:
        alpha, beta, of_original, of_x, *deviation = c
        original = predicted_original(prediction_type, x, output, alpha, beta)
        mean = of_original * clipped(original, bound) + of_x * x
        # As diffusers: a sum with 0 has no negative zero.
        return mean + (deviation[0] * noise if draws else 0), ()

    return Rule(step, draws=draws)


@lru_cache
def _pndm_rule(prediction_type: str, *, call: int) -> Rule:
    """Of the calls 0, 1, 2 and 3, and of all that come after."""

    def moved(x: torch.Tensor, output: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Eq. 11."""
        alpha, beta, of_x, difference, divisor = c
        if prediction_type == "v_prediction":
            output = alpha * output + beta * x
        return of_x * x - difference * output / divisor

    def first(
        x: torch.Tensor, output: torch.Tensor, _: History, __: Any, c: torch.Tensor
    ) -> tuple[torch.Tensor, History]:
        return moved(x, output, c), (output, x)

    def again(
        _: torch.Tensor, output: torch.Tensor, history: History, __: Any, c: torch.Tensor
    ) -> tuple[torch.Tensor, History]:
        before, x = history
        return moved(x, (output + before) / 2, c), (before,)

    def multistep(
        x: torch.Tensor, output: torch.Tensor, history: History, __: Any, c: torch.Tensor
    ) -> tuple[torch.Tensor, History]:
        outputs = (output, *history)
        if len(outputs) == 4:
            e_1, e_2, e_3, e_4 = outputs
            mixed = (1 / 24) * (55 * e_1 - 59 * e_2 + 37 * e_3 - 9 * e_4)
        elif len(outputs) == 3:
            e_1, e_2, e_3 = outputs
            mixed = (23 * e_1 - 16 * e_2 + 5 * e_3) / 12
        else:
            e_1, e_2 = outputs
            mixed = (3 * e_1 - e_2) / 2
        return moved(x, mixed, c), outputs[:3]

    taken: Step = (first, again, multistep, multistep, multistep)[call]
    return Rule(taken, looks_back=(0, 2, 1, 2, 3)[call])


def _alphas(scheduler: Any, timestep: int, before: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        scheduler.alphas_cumprod[timestep],
        scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod,
    )
