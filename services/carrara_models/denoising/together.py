"""Takes many jobs one step on: those of equal rules in a few operations over all their rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from carrara_models.denoising.guidance import guided, guided_with_variance
from carrara_models.denoising.job import DenoisingJob
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
        if job.guidance_rescale or len(output) != 2 or output.dtype != torch.float32:
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
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, (job, output) in enumerate(zip(jobs, outputs, strict=True)):
        if job.plan is None or output.dtype != torch.float32:
            try:
                job.advance_by_scheduler(output)
            except Exception as error:
                errors[index] = error
        else:
            key = (job.plan.rules[job.step], job.latents.shape)
            groups.setdefault(key, []).append(index)
    for (rule, _), indices in groups.items():
        members = [jobs[index] for index in indices]
        x = torch.stack([job.latents for job in members])  # [J, n, ...]
        output = torch.stack([outputs[index] for index in indices])
        before = torch.stack([job.original for job in members]) if rule.looks_back else None
        numbers = torch.stack([job.plan.coefficients[job.step] for job in members], dim=1)  # [k, J]
        x, original = rule.step(x, output, before, _column(numbers, x))
        originals = [None] * len(members) if original is None else original.unbind()
        for job, latents, own in zip(members, x.unbind(), originals, strict=True):
            job.latents, job.original = latents, own
            job.step += 1
    stepped = [index for index, error in enumerate(errors) if error is None]
    if stepped:
        rows = torch.cat([jobs[index].latents for index in stepped])
        finite = iter(torch.isfinite(rows).flatten(1).all(dim=1).tolist())
        for index in stepped:
            # As a list: `all` would stop in the midst of a job's rows.
            if not all(list(islice(finite, len(jobs[index].latents)))):
                errors[index] = NumericalError("latents", jobs[index].step)
    return errors


def _column(numbers: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[..., J] numbers as [..., J, 1, ...], one for each of the rows [J, ...]."""
    return numbers.reshape(*numbers.shape, *[1] * (rows.ndim - 1))
