"""Plans of UniPC (Zhao et al. 2023)."""

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
    numbers,
    predicted_original,
)


def uni_pc(scheduler: Any) -> StepPlan | None:
    """Algorithms 3 and 4: second order, predicting x_0."""
    config = scheduler.config
    if (
        not config.predict_x0
        or config.solver_order != 2
        or config.solver_p is not None
        or config.thresholding
        or config.prediction_type not in (*PREDICTION_TYPES, "flow_prediction")
    ):
        return None
    num_steps = len(scheduler.timesteps)

    def order_of(step: int) -> int:
        return min(2, step + 1, num_steps - step if config.lower_order_final else 2)

    def at(step: int) -> PlannedStep:
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[step])
        if config.prediction_type == "flow_prediction":
            sigma = scheduler.sigmas[step]
        coefficients = [alpha, sigma]
        corrects = step > 0 and step - 1 not in scheduler.disable_corrector
        corrected = order_of(step - 1) if corrects else 0
        if corrects:
            *way, ratios, right = _way(scheduler, step - 1, order=corrected)
            weights = [torch.ones(()) * 0.5]
            if corrected == 2:
                powers = torch.stack([ratios**0, ratios])
                weights = list(torch.linalg.solve(powers, right))
            coefficients += [*way, *ratios[:-1], *weights]
        *way, ratios, _ = _way(scheduler, step, order=order_of(step))
        coefficients += [*way, *ratios[:-1]]
        rule = _rule(config.prediction_type, corrected=corrected, order=order_of(step))
        return PlannedStep(rule, numbers(*coefficients))

    return StepPlan(at, device=scheduler.timesteps.device)


def _way(scheduler: Any, step: int, *, order: int) -> list[torch.Tensor]:
    """From `step` to the next.

    Returns:
        What of x is kept, what of x_0 is taken, and the share of what the orders above the first
        add; then the steps before in units of this one, with 1 for itself, and the right side of
        the equations for their weights.
    """
    (alpha, sigma), (_, sigma_0), *_ = pairs = [
        scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
        for index in (step + 1, step, step - 1)[: order + 1]
    ]
    lambdas = [torch.log(alpha) - torch.log(sigma) for alpha, sigma in pairs]
    h = lambdas[0] - lambdas[1]
    ratios = [(before - lambdas[1]) / h for before in lambdas[2:]]
    hh = -h
    phi_1 = torch.expm1(hh)
    share = hh if scheduler.config.solver_type == "bh1" else phi_1
    phi, factorial, right = phi_1 / hh - 1, 1, []
    for k in range(1, order + 1):
        right.append(phi * factorial / share)
        factorial *= k + 1
        phi = phi / hh - 1 / factorial
    return [
        sigma / sigma_0,
        alpha * phi_1,
        alpha * share,
        torch.stack([*ratios, torch.ones(())]),
        torch.stack(right),
    ]


@lru_cache
def _rule(prediction_type: str, *, corrected: int, order: int) -> Rule:
    """The corrector of the step before, where `corrected` is its order, then the predictor."""

    def step(
        x: torch.Tensor, output: torch.Tensor, history: History, _: Any, c: torch.Tensor
    ) -> tuple[torch.Tensor, History]:
        alpha, sigma, *others = c
        original = predicted_original(prediction_type, x, output, alpha, sigma)
        originals = history[1:]
        if corrected:
            kept, taken, share, *others = others
            start = kept * history[0] - taken * originals[0]
            # As diffusers: a sum with 0 has no negative zero.
            correction: Any = 0
            if corrected == 2:
                ratio, weight, *others = others
                correction = weight * ((originals[1] - originals[0]) / ratio)
            last, *others = others
            x = start - share * (correction + last * (original - originals[0]))
        kept, taken, share, *others = others
        moved = kept * x - taken * original
        added: Any = 0
        if order == 2:
            added = 0.5 * ((originals[0] - original) / others[0])
        return moved - share * added, (x, original, *originals[:1])

    # The start of the step before, and x_0 as predicted in it and in the one before that.
    looks_back = max(1 + corrected if corrected else 0, 2 if order == 2 else 0)
    return Rule(step, looks_back=looks_back)
