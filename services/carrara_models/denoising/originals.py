"""The picture that a network takes a noisy one for: x_0, from x_t and what the network made of it.

Schedulers compute it too, in the midst of their steps. Here it stands by itself, so that looking at
it leaves the steps as they are.
"""

from __future__ import annotations

from typing import Any

import torch

from carrara_models.denoising.guidance import guided
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.plans.plan import predicted_original


def original_of(job: DenoisingJob, output: torch.Tensor) -> torch.Tensor:
    """x_0 as the network predicts it at a job's next step.

    Args:
        job: Before that step.
        output: Of the network, [rows, C, ...], the negative half first; what stands behind the
            channels of x_t is a variance.

    Returns:
        [n, C, ...] in float32, neither clipped nor thresholded.
    """
    x = job.latents.float()
    prediction = guided(
        output[:, : x.shape[1]].float(),
        job.guidance_scale,
        guidance_rescale=job.guidance_rescale,
    )
    scheduler = job.scheduler
    alpha, sigma, divisor = _noise_level(scheduler, job)
    # Schedulers of flow matching have no such entry, as they know one type alone.
    prediction_type = scheduler.config.get("prediction_type", "flow_prediction")
    return predicted_original(prediction_type, x / divisor, prediction, alpha, sigma)


def _noise_level(scheduler: Any, job: DenoisingJob) -> tuple[float, float, float]:
    """How x_t is mixed at the job's next step.

    Returns:
        alpha, sigma and a divisor: x_t by the divisor is alpha times x_0 and sigma times noise.
    """
    if not hasattr(scheduler, "sigmas"):  # those that count in products of alphas
        kept = float(scheduler.alphas_cumprod[int(job.timestep_number)])
        return kept**0.5, (1 - kept) ** 0.5, 1.0
    sigma = scheduler.sigmas[job.step]
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        if scheduler.config.prediction_type == "flow_prediction":
            return 1 - float(sigma), float(sigma), 1.0
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
        return float(alpha), float(sigma), 1.0
    if "FlowMatch" in type(scheduler).__name__:
        return 1 - float(sigma), float(sigma), 1.0
    # Those that add noise to x_0 as it is; networks see what comes of it scaled to a variance of 1.
    divisor = (float(sigma) ** 2 + 1) ** 0.5
    return 1 / divisor, float(sigma) / divisor, divisor
