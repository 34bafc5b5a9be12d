"""Runs one job alone, from request to sample: for tests, for measures, and as a reader's way in."""

from __future__ import annotations

from carrara_models.parts import DenoisingRequest, Generator, Sample


def run_alone(generator: Generator, request: DenoisingRequest) -> Sample:
    """Takes one request through all its steps."""
    job = generator.start(request)
    while job.step < job.num_steps:
        (output,) = generator.predict([job])
        generator.advance(job, output)
    return generator.finish(job)
