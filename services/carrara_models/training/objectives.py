"""What a denoiser is trained on: which noise levels, which target, and what each is worth.

Algorithm 1 of Ho et al. 2020 with the choices that came after it; the forward processes are
diffusers' schedulers. It knows nothing of the network, nor of what the clean samples are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from torch import Tensor

from carrara_models.training.errors import RecipeError

TRAIN_TIMESTEPS = 1000
# A linear schedule ends at a residual signal of 0.6 %, so that pure noise is a fair start; the
# scaled-linear one keeps 7 %, which would tint every background.
BETA_START, BETA_END = 1e-4, 0.02

# Multistep solvers do not clip; bounded so, dynamic thresholding keeps pixels in their range.
BOUNDED = {"thresholding": True, "sample_max_value": 1.0}

Target = Literal["epsilon", "sample", "v_prediction", "flow"]
Times = Literal["uniform", "logit-normal", "log-snr-normal"]


@dataclass(frozen=True)
class Objective:
    """The choices.

    Attributes:
        target: What the network predicts: the noise (Ho et al. 2020), the clean sample, v (Salimans
            and Ho 2022, App. D), or the velocity of a straight path (Lipman et al. 2023).
        times: How timesteps are drawn. "logit-normal" draws the fraction of the way to noise (Esser
            et al. 2024); "log-snr-normal" the logarithm of the signal-to-noise ratio.
        mean: Of the normal draws.
        deviation: Of the normal draws.
        uniform_share: How many timesteps are drawn evenly in any case. The first steps of a sampler
            lie far out in the tail of a normal distribution; where the network is untrained, they
            put objects anywhere.
        min_snr_gamma: Bound of the loss weights (Hang et al. 2023); None weighs all levels of the
            target's own loss alike. Not for flow.
    """

    target: Target = "v_prediction"
    times: Times = "log-snr-normal"
    mean: float = -1.0
    deviation: float = 1.75
    uniform_share: float = 0.25
    min_snr_gamma: float | None = None

    def __post_init__(self) -> None:
        if self.target == "flow" and self.times == "log-snr-normal":
            raise RecipeError(
                "flow has no signal-to-noise ratios of timesteps: choose other objective.times"
            )
        if self.target == "flow" and self.min_snr_gamma is not None:
            raise RecipeError("objective.min_snr_gamma is for epsilon, sample and v_prediction")


def build_schedule(objective: Objective, **options: Any) -> Any:
    """The forward process; its config is what every sampler of the checkpoint is built from.

    Args:
        options: Further fields of the scheduler's config, such as `variance_type`, which mean
            nothing to flow.
    """
    if objective.target == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS)
    return DDPMScheduler(
        **{
            "num_train_timesteps": TRAIN_TIMESTEPS,
            "beta_start": BETA_START,
            "beta_end": BETA_END,
            "beta_schedule": "linear",
            "prediction_type": objective.target,
            "clip_sample": False,
            "timestep_spacing": "trailing",
            # `StableDiffusionPipeline` wants 1; trailing spacing does not read it.
            "steps_offset": 1,
            **options,
        }
    )


def sample_timesteps(
    count: int, *, schedule: Any, objective: Objective, torch_generator: torch.Generator
) -> Tensor:
    """Timesteps [count]: int64 indices, or float32 in (0, 1000] for flow.

    Args:
        schedule: Of `build_schedule`.
        torch_generator: The source of the draws.
    """
    even = torch.rand(count, generator=torch_generator, dtype=torch.float64)
    is_even = torch.rand(count, generator=torch_generator) < objective.uniform_share
    if objective.times == "log-snr-normal":
        wanted = torch.randn(count, generator=torch_generator, dtype=torch.float64)
        drawn = _nearest_timesteps(
            objective.mean + objective.deviation * wanted, schedule.alphas_cumprod.double()
        )
    else:
        name = "logit_normal" if objective.times == "logit-normal" else "none"
        fractions = compute_density_for_timestep_sampling(
            name,
            batch_size=count,
            logit_mean=objective.mean,
            logit_std=objective.deviation,
            generator=torch_generator,
        )
        drawn = fractions.double() * TRAIN_TIMESTEPS
    timesteps = torch.where(is_even, even * TRAIN_TIMESTEPS, drawn.double())
    if objective.target == "flow":
        # Not 0: there the path has no noise left to tell of.
        return timesteps.clamp(1e-3 * TRAIN_TIMESTEPS, TRAIN_TIMESTEPS).float()
    return timesteps.floor().clamp(0, TRAIN_TIMESTEPS - 1).long()


def add_noise(
    samples: Tensor, noise: Tensor, timesteps: Tensor, *, schedule: Any, objective: Objective
) -> Tensor:
    """x_t [B, ...] of clean samples x_0 [B, ...] (Eq. 4, Ho et al. 2020; flow: a straight line)."""
    if objective.target != "flow":
        return schedule.add_noise(samples, noise, timesteps)
    sigmas = _like(timesteps / TRAIN_TIMESTEPS, samples)
    return (1 - sigmas) * samples + sigmas * noise


def target_of(
    samples: Tensor, noise: Tensor, timesteps: Tensor, *, schedule: Any, objective: Objective
) -> Tensor:
    """What the network should predict, [B, ...]."""
    match objective.target:
        case "epsilon":
            return noise
        case "sample":
            return samples
        case "v_prediction":
            return schedule.get_velocity(samples, noise, timesteps)
        case "flow":
            return noise - samples


def loss_of(
    predicted: Tensor, target: Tensor, timesteps: Tensor, *, schedule: Any, objective: Objective
) -> Tensor:
    """The mean squared error, weighted where the objective says so; a scalar.

    Args:
        predicted: [B, ...], in any precision.
    """
    errors = F.mse_loss(predicted.float(), target.float(), reduction="none")
    errors = errors.flatten(1).mean(dim=1)
    return (errors * loss_weights(timesteps, schedule=schedule, objective=objective)).mean()


def loss_weights(timesteps: Tensor, *, schedule: Any, objective: Objective) -> Tensor:
    """What the error at each timestep is worth, float32 [B] (Eq. 5 to 7, Hang et al. 2023).

    In terms of the clean sample's error every target gets min(SNR, gamma).
    """
    if objective.min_snr_gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    snr = compute_snr(schedule, timesteps)
    bounded = snr.clamp(max=objective.min_snr_gamma)
    match objective.target:
        case "epsilon":
            return bounded / snr
        case "v_prediction":
            return bounded / (snr + 1)
        case _:
            return bounded


def _nearest_timesteps(log_snrs: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The timesteps whose log-SNR is nearest to those wanted."""
    table = (alphas_cumprod / (1 - alphas_cumprod)).log()  # falling
    middles = (table[1:] + table[:-1]) / 2
    return torch.searchsorted(-middles, -log_snrs)


def _like(values: Tensor, samples: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (samples.dim() - 1)).to(samples)
