"""Runs one job alone, from request to sample: for tests, for measures, and as a reader's way in."""

from __future__ import annotations

from carrara_models.parts import Denoiser, DenoisingRequest, Sample


def run_alone(denoiser: Denoiser, request: DenoisingRequest) -> Sample:
    """Takes one request through all its steps."""
    job = denoiser.start(request)
    while job.step < job.num_steps:
        (output,) = denoiser.predict([job])
        denoiser.advance(job, output)
    return denoiser.finish(job)
