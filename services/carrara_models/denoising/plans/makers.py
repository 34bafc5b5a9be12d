"""Finds a scheduler's plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers

from carrara_models.denoising.plans.by_alphas import ddim, ddpm, pndm
from carrara_models.denoising.plans.by_sigmas import euler, euler_ancestral, heun, lms
from carrara_models.denoising.plans.dpm_solver import dpm_solver
from carrara_models.denoising.plans.flow import flow_euler, flow_heun
from carrara_models.denoising.plans.plan import StepPlan
from carrara_models.denoising.plans.uni_pc import uni_pc
from carrara_models.denoising.recent import Recent

MAX_PLANS = 256
MAKERS: Mapping[type, Callable[[Any], StepPlan | None]] = {
    diffusers.DDIMScheduler: ddim,
    diffusers.DDPMScheduler: ddpm,
    diffusers.PNDMScheduler: pndm,
    diffusers.EulerDiscreteScheduler: euler,
    diffusers.EulerAncestralDiscreteScheduler: euler_ancestral,
    diffusers.HeunDiscreteScheduler: heun,
    diffusers.LMSDiscreteScheduler: lms,
    diffusers.DPMSolverMultistepScheduler: dpm_solver,
    diffusers.UniPCMultistepScheduler: uni_pc,
    diffusers.FlowMatchEulerDiscreteScheduler: flow_euler,
    diffusers.FlowMatchHeunDiscreteScheduler: flow_heun,
}

_plans = Recent[StepPlan | None](MAX_PLANS)


def plan_for(scheduler: Any) -> StepPlan | None:
    """The plan of a scheduler whose timesteps are set; None where it steps by itself.

    Jobs whose schedulers are set alike share one.
    """
    maker = MAKERS.get(type(scheduler))
    timesteps = scheduler.timesteps.tolist()
    # A scheduler looks its first step up by the timestep, and takes the second of two equal ones.
    begins = getattr(scheduler, "begin_index", None) in (None, 0)
    if maker is None or not begins or timesteps.count(timesteps[0]) > 1:
        return None
    key = (
        type(scheduler),
        repr(sorted(scheduler.config.items())),
        scheduler.timesteps.device,
        *timesteps,
    )
    return _plans.get(key, lambda: maker(scheduler))
