"""Plans of DPM-Solver++ (Lu et al. 2022)."""

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


def dpm_solver(scheduler: Any) -> StepPlan | None:
    """Algorithm 2, Lu et al. 2022: second order, midpoint."""
    config = scheduler.config
    if (
        config.algorithm_type != "dpmsolver++"
        or config.solver_order != 2
        or config.solver_type != "midpoint"
        or config.thresholding
        or config.prediction_type not in (*PREDICTION_TYPES, "flow_prediction")
        or config.get("variance_type") in ("learned", "learned_range")
    ):
        return None
    num_steps = len(scheduler.timesteps)
    ends_in_first_order = (
        config.euler_at_final
        or (config.lower_order_final and num_steps < 15)
        or config.final_sigmas_type == "zero"
    )

    def at(step: int) -> PlannedStep:
        (alpha_before, sigma_before), (alpha, sigma), _ = pairs = [
            scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
            for index in (step + 1, step, max(step - 1, 0))
        ]
        lambdas = [torch.log(alpha) - torch.log(sigma) for alpha, sigma in pairs]
        h = lambdas[0] - lambdas[1]
        taken = alpha_before * (torch.exp(-h) - 1.0)
        flows = config.prediction_type == "flow_prediction"
        of_output = scheduler.sigmas[step] if flows else sigma
        coefficients = [alpha, of_output, sigma_before / sigma, taken]
        is_first = step == 0 or (step == num_steps - 1 and ends_in_first_order)
        if not is_first:
            ratio = (lambdas[1] - lambdas[2]) / h
            coefficients += [1.0 / ratio, 0.5 * taken]
        rule = _dpm_rule(config.prediction_type, order=1 if is_first else 2)
        return PlannedStep(rule, numbers(*coefficients))

    return StepPlan(at, device=scheduler.timesteps.device)


@lru_cache
def _dpm_rule(prediction_type: str, *, order: int) -> Rule:
    def step(
        x: torch.Tensor, output: torch.Tensor, history: History, _: Any, c: torch.Tensor
    ) -> tuple[torch.Tensor, History]:
        alpha, sigma, kept, taken, *further = c
        original = predicted_original(prediction_type, x, output, alpha, sigma)
        moved = kept * x - taken * original
        if order == 2:
            (before,), (inverse_ratio, half) = history, further
            moved = moved - half * (inverse_ratio * (original - before))
        return moved, (original,)

    return Rule(step, looks_back=order - 1)
