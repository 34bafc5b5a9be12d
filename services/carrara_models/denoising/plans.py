"""Steps of many jobs at once: the arithmetic of DDIM, Euler and DPM-Solver++ over rows.

One `scheduler.step` with guidance costs 0.3 to 0.75 ms, nearly all of it Python and tensors of a
single number, and a batch of sixteen pays it sixteen times. Here every number that depends on the
step alone is computed once for all jobs of equal settings, by the scheduler's own operations in its
own order; what is left are a few operations over all rows. Products, quotients and sums of float32
round number by number, whether the other operand is one number or one for each row, so that the
bits are diffusers'. Schedulers and settings that are not known here step job by job, as diffusers
has it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)

MAX_PLANS = 256
_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class Rule:
    """What a step computes; equal ones run together.

    Attributes:
        step: Takes x_t, the network's guided output, x_0 as predicted in the step before, and the
            coefficients; gives x_{t-1} and the prediction of x_0 where it is kept. All [J, ...] but
            the coefficients, which are [k, J, 1, ...].
        looks_back: Whether it takes what the step before has predicted; else it is given None.
    """

    step: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor],
        tuple[torch.Tensor, torch.Tensor | None],
    ]
    looks_back: bool = False


@dataclass(frozen=True)
class StepPlan:
    """How the jobs of one scheduler, with one list of timesteps, go from step to step.

    Attributes:
        rules: One for each step.
        coefficients: For each step, float32 [k].
        input_divisors: For each step, what x_t is divided by before the network sees it, a float32
            scalar; None where it is seen as it is.
    """

    rules: Sequence[Rule]
    coefficients: Sequence[torch.Tensor]
    input_divisors: Sequence[torch.Tensor] | None = None


_plans: OrderedDict[tuple[Any, ...], StepPlan | None] = OrderedDict()


def plan_for(scheduler: Any) -> StepPlan | None:
    """The plan of a scheduler whose timesteps are set; None where it steps by itself.

    Jobs whose schedulers are set alike share one.
    """
    maker = _MAKERS.get(type(scheduler))
    timesteps = scheduler.timesteps.tolist()
    # A scheduler looks its first step up by the timestep, and takes the second of two equal ones.
    if maker is None or len(set(timesteps)) != len(timesteps):
        return None
    key = (
        type(scheduler),
        repr(sorted(scheduler.config.items())),
        scheduler.timesteps.device,
        *timesteps,
    )
    if key not in _plans:
        _plans[key] = maker(scheduler)
        while len(_plans) > MAX_PLANS:
            _plans.popitem(last=False)
    _plans.move_to_end(key)
    return _plans[key]


def _ddim(scheduler: DDIMScheduler) -> StepPlan | None:
    config = scheduler.config
    if config.thresholding or config.prediction_type not in _PREDICTION_TYPES:
        return None
    rule = _ddim_rule(
        config.prediction_type, config.clip_sample_range if config.clip_sample else None
    )
    stride = config.num_train_timesteps // scheduler.num_inference_steps
    coefficients = []
    for timestep in scheduler.timesteps.tolist():
        alpha = scheduler.alphas_cumprod[timestep]
        before = timestep - stride
        alpha_before = (
            scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
        )
        beta = 1 - alpha
        direction = (1 - alpha_before) ** 0.5  # an eta of 0 takes nothing off
        coefficients.append(torch.stack([alpha**0.5, beta**0.5, alpha_before**0.5, direction]))
    return StepPlan([rule] * len(coefficients), _placed(coefficients, scheduler))


def _euler(scheduler: EulerDiscreteScheduler) -> StepPlan | None:
    prediction_type = scheduler.config.prediction_type
    if prediction_type not in _PREDICTION_TYPES or scheduler.begin_index not in (None, 0):
        return None
    coefficients, divisors = [], []
    for step in range(len(scheduler.timesteps)):
        sigma, sigma_before = scheduler.sigmas[step], scheduler.sigmas[step + 1]
        divisors.append((sigma**2 + 1) ** 0.5)
        out = -sigma / (sigma**2 + 1) ** 0.5
        coefficients.append(torch.stack([sigma, sigma_before - sigma, out, sigma**2 + 1]))
    return StepPlan(
        [_euler_rule(prediction_type)] * len(coefficients),
        _placed(coefficients, scheduler),
        _placed(divisors, scheduler),
    )


def _dpm(scheduler: DPMSolverMultistepScheduler) -> StepPlan | None:
    config = scheduler.config
    if (
        config.algorithm_type != "dpmsolver++"
        or config.solver_order != 2
        or config.solver_type != "midpoint"
        or config.thresholding
        or config.prediction_type not in (*_PREDICTION_TYPES, "flow_prediction")
        or config.get("variance_type") in ("learned", "learned_range")
        or scheduler.begin_index not in (None, 0)
    ):
        return None
    num_steps = len(scheduler.timesteps)
    ends_in_first_order = (
        config.euler_at_final
        or (config.lower_order_final and num_steps < 15)
        or config.final_sigmas_type == "zero"
    )
    rules, coefficients = [], []
    for step in range(num_steps):
        pairs = [
            scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
            for index in (step + 1, step, max(step - 1, 0))
        ]
        (alpha_before, sigma_before), (alpha, sigma), _ = pairs
        lambdas = [torch.log(alpha) - torch.log(sigma) for alpha, sigma in pairs]
        h = lambdas[0] - lambdas[1]
        kept = sigma_before / sigma
        taken = alpha_before * (torch.exp(-h) - 1.0)
        numbers = [alpha, sigma, kept, taken]
        is_first = step == 0 or (step == num_steps - 1 and ends_in_first_order)
        if not is_first:
            ratio = (lambdas[1] - lambdas[2]) / h
            numbers += [1.0 / ratio, 0.5 * taken]
        if config.prediction_type == "flow_prediction":
            numbers[1] = scheduler.sigmas[step]
        rules.append(_dpm_rule(config.prediction_type, order=1 if is_first else 2))
        coefficients.append(torch.stack(numbers))
    return StepPlan(rules, _placed(coefficients, scheduler))


@lru_cache
def _ddim_rule(prediction_type: str, clip: float | None) -> Rule:
    """Eq. 12, Song et al. 2021."""

    def step(
        x: torch.Tensor, output: torch.Tensor, _: torch.Tensor | None, c: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        alpha, beta, alpha_before, direction = c
        if prediction_type == "epsilon":
            original, epsilon = (x - beta * output) / alpha, output
        elif prediction_type == "sample":
            original, epsilon = output, (x - alpha * output) / beta
        else:
            original, epsilon = alpha * x - beta * output, alpha * output + beta * x
        if clip is not None:
            original = original.clamp(-clip, clip)
        return alpha_before * original + direction * epsilon, None

    return Rule(step)


@lru_cache
def _euler_rule(prediction_type: str) -> Rule:
    """Alg. 2, Karras et al. 2022, without churn."""

    def step(
        x: torch.Tensor, output: torch.Tensor, _: torch.Tensor | None, c: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        sigma, difference, out, skip = c
        if prediction_type == "epsilon":
            original = x - sigma * output
        elif prediction_type == "sample":
            original = output
        else:
            original = output * out + x / skip
        return x + (x - original) / sigma * difference, None

    return Rule(step)


@lru_cache
def _dpm_rule(prediction_type: str, *, order: int) -> Rule:
    """Alg. 2, Lu et al. 2022 (DPM-Solver++)."""

    def step(
        x: torch.Tensor, output: torch.Tensor, before: torch.Tensor | None, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma, kept, taken, *further = c
        if prediction_type == "epsilon":
            original = (x - sigma * output) / alpha
        elif prediction_type == "sample":
            original = output
        elif prediction_type == "v_prediction":
            original = alpha * x - sigma * output
        else:
            original = x - sigma * output
        moved = kept * x - taken * original
        if order == 2:
            assert before is not None
            inverse_ratio, half = further
            moved = moved - half * (inverse_ratio * (original - before))
        return moved, original

    return Rule(step, looks_back=order == 2)


_MAKERS: dict[type, Callable[[Any], StepPlan | None]] = {
    DDIMScheduler: _ddim,
    EulerDiscreteScheduler: _euler,
    DPMSolverMultistepScheduler: _dpm,
}


def _placed(tensors: Sequence[torch.Tensor], scheduler: Any) -> list[torch.Tensor]:
    return [tensor.to(scheduler.timesteps.device, torch.float32) for tensor in tensors]
