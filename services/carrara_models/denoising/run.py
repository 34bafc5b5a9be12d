"""Runs one job alone, from request to sample: for tests, for measures, and as a reader's way in."""

from __future__ import annotations

import torch

from carrara_models.parts import Denoiser, DenoisingRequest, Job, Sample


def run_alone(denoiser: Denoiser, request: DenoisingRequest) -> Sample:
    """Takes one request through all its steps."""
    job = denoiser.start(request)
    while job.step < job.num_steps:
        advance_alone(denoiser, job, *denoiser.predict([job]))
    return denoiser.finish(job)


def advance_alone(denoiser: Denoiser, job: Job, output: torch.Tensor) -> None:
    """Takes one job one step on.

    Raises:
        Exception: What went wrong with it.
    """
    (error,) = denoiser.advance([job], [output])
    if error is not None:
        raise error
