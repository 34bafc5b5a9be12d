"""One network call for many jobs: their rows side by side, each as if it were alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch

from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.numerics import exact_rows


def call_network(
    jobs: Sequence[DenoisingJob],
    network: Callable[..., torch.Tensor],
    *,
    inputs: Callable[[DenoisingJob], Sequence[torch.Tensor]] = DenoisingJob.network_input,
    chunk_rows: int | None = None,
    one_by_one_on_cpu: bool = False,
) -> list[torch.Tensor]:
    """Calls the network once for all jobs.

    Args:
        jobs: Of one group; their steps, schedulers and guidance may all differ.
        network: Called with x_t [rows, ...], timesteps float32 [rows], and the jobs' inputs by
            name, [rows, ...]; gives [rows, ...].
        inputs: Makes a job's x_t [rows, ...], in parts.
        chunk_rows: How many rows the pipeline gives the network in one call; None for all that a
            job has.
        one_by_one_on_cpu: Whether the network depends on the number of rows in more than what
            `exact_rows` mends. So do networks with `SimpleCrossAttn` and `AttnDown` blocks, which
            leave several rows laid out channels last, one row in the plain layout; torch's norms,
            activations and convolutions have a kernel for each. They are called once per job.

    Returns:
        For each job, in order, [rows, ...].
    """
    if one_by_one_on_cpu and len(jobs) > 1 and jobs[0].latents.device.type == "cpu":
        calls = [call_network([job], network, inputs=inputs, chunk_rows=chunk_rows) for job in jobs]
        return [output for outputs in calls for output in outputs]
    rows = [job.rows for job in jobs]
    chunks = rows if chunk_rows is None else [chunk_rows] * (sum(rows) // chunk_rows)
    x = torch.cat([part for job in jobs for part in inputs(job)])
    # The embedding of time turns timesteps into float32 first, so nothing is lost here.
    numbers = [job.timestep_number for job in jobs for _ in range(job.rows)]
    timesteps = torch.tensor(numbers, dtype=torch.float32, device=x.device)
    gathered = {name: torch.cat([job.inputs[name] for job in jobs]) for name in jobs[0].inputs}
    exact = len(chunks) > 1 and x.device.type == "cpu"
    with exact_rows(chunks) if exact else contextlib.nullcontext():
        output = network(x, timesteps, **gathered)
    return list(output.split(rows))
