"""Takes many jobs one step on: those of equal rules in a few operations over all their rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor

from carrara_models.denoising.guidance import guided, guided_with_variance
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.plans.plan import Rule
from carrara_models.denoising.schedulers import takes_variance
from carrara_models.errors import NumericalError


def guided_together(
    jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Guides each job's output, [rows, ...], as `guidance.guided` does; gives [n, ...] for each."""
    results = list(outputs)
    plain = []
    for index, (job, output) in enumerate(zip(jobs, outputs, strict=True)):
        if job.guidance_scale is None:
            continue
        if job.guidance_rescale or output.shape[0] != 2 or output.dtype != torch.float32:
            results[index] = guided(
                output, job.guidance_scale, guidance_rescale=job.guidance_rescale
            )
        else:
            plain.append(index)
    if plain:
        both = torch.stack([outputs[index] for index in plain])  # [J, 2, ...]
        scales = both.new_tensor([jobs[index].guidance_scale for index in plain])
        negative, positive = both[:, :1], both[:, 1:]
        combined = negative + _column(scales, both) * (positive - negative)
        for index, row in zip(plain, combined, strict=True):
            results[index] = row
    return results


def guided_with_variance_each(
    jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Guides outputs of noise and variance, [rows, C + V, ...]; C is what the latents have.

    Returns:
        For each job what its scheduler takes: [n, C + V, ...], or [n, C, ...] without the variance.
    """
    results = []
    for job, output in zip(jobs, outputs, strict=True):
        channels = job.latents.shape[1]
        both = guided_with_variance(output, job.guidance_scale, channels=channels)
        results.append(both if takes_variance(job.scheduler) else both[:, :channels])
    return results


def advance_together(
    jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
) -> list[Exception | None]:
    """Takes jobs one step on, each by its own scheduler.

    Args:
        jobs: Of one group.
        outputs: Of the network, guided, [n, ...] for each job.

    Returns:
        For each job, in order, what went wrong with it, and with no other.
    """
    errors: list[Exception | None] = [None] * len(jobs)
    groups: dict[tuple[Rule, torch.Size], list[int]] = {}
    for index, (job, output) in enumerate(zip(jobs, outputs, strict=True)):
        if job.plan is None or output.dtype != torch.float32:
            try:
                job.advance_by_scheduler(output)
            except Exception as error:
                errors[index] = error
            else:
                if not _are_finite(job.latents):
                    errors[index] = NumericalError("latents", job.step)
        else:
            key = (job.planned.rule, job.latents.shape)
            groups.setdefault(key, []).append(index)
    for (rule, _), indices in groups.items():
        members = [jobs[index] for index in indices]
        x = _step_together(rule, members, [outputs[index] for index in indices])
        if not _are_finite(x):
            for index in indices:
                if not _are_finite(jobs[index].latents):
                    errors[index] = NumericalError("latents", jobs[index].step)
    return errors


def _step_together(
    rule: Rule, jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Steps jobs of one rule and shape; gives the latents of all, [J, n, ...]."""
    x = torch.stack([job.latents for job in jobs])  # [J, n, ...]
    history = tuple(
        torch.stack([job.history[index] for job in jobs]) for index in range(rule.looks_back)
    )
    noise = None
    if rule.draws:
        noise = torch.stack([_noise(job) for job in jobs])
    coefficients = torch.stack([job.planned.coefficients for job in jobs], dim=1)  # [k, J]
    x, history = rule.step(x, torch.stack(list(outputs)), history, noise, _column(coefficients, x))
    kept = [tensor.unbind() for tensor in history]
    for index, (job, latents) in enumerate(zip(jobs, x.unbind(), strict=True)):
        job.latents, job.history = latents, tuple(tensor[index] for tensor in kept)
        job.step += 1
    return x


def _are_finite(x: torch.Tensor) -> bool:
    # A sum is much faster, and finite only where all that is summed is.
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


def _noise(job: DenoisingJob) -> torch.Tensor:
    """What the job's scheduler would draw."""
    latents = job.latents
    return randn_tensor(
        latents.shape, generator=job.torch_generator, device=latents.device, dtype=latents.dtype
    )


def _column(numbers: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[..., J] numbers as [..., J, 1, ...], one for each of the rows [J, ...]."""
    return numbers.reshape(*numbers.shape, *[1] * (rows.ndim - 1))
