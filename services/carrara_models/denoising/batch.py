"""One network call for many jobs: their rows side by side, each as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.numerics import exact_rows
from carrara_models.parts import Numerics


def call_network(
    jobs: Sequence[DenoisingJob],
    network: Callable[..., torch.Tensor],
    *,
    numerics: Numerics,
    inputs: Callable[[DenoisingJob], Sequence[torch.Tensor]] = DenoisingJob.network_input,
    chunk_rows: int | None = None,
    one_by_one: bool = False,
) -> list[torch.Tensor]:
    """Calls the network once for all jobs.

    Args:
        jobs: Of one group; their steps, schedulers and guidance may all differ.
        network: Called with x_t [rows, ...], timesteps float32 [rows], and the jobs' inputs by
            name, [rows, ...]; gives [rows, ...].
        numerics: Of the part.
        inputs: Makes a job's x_t [rows, ...], in parts.
        chunk_rows: How many rows the pipeline gives the network in one call; None for all that a
            job has.
        one_by_one: Whether the network depends on the number of rows in more than what `exact_rows`
            mends. So do networks with `SimpleCrossAttn` and `AttnDown` blocks, which leave several
            rows laid out channels last, one row in the plain layout; torch's norms, activations and
            convolutions have a kernel for each. Exact, they are called once per job.

    Returns:
        For each job, in order, [rows, ...].
    """
    if one_by_one and len(jobs) > 1 and numerics.exact:
        return [
            output
            for job in jobs
            for output in call_network(
                [job], network, numerics=numerics, inputs=inputs, chunk_rows=chunk_rows
            )
        ]
    rows = [job.rows for job in jobs]
    chunks = rows if chunk_rows is None else [chunk_rows] * (sum(rows) // chunk_rows)
    x = torch.cat([part for job in jobs for part in inputs(job)])
    # The embedding of time turns timesteps into float32 first, so nothing is lost here.
    numbers = [job.timestep_number for job in jobs for _ in range(job.rows)]
    timesteps = torch.tensor(numbers, dtype=torch.float32, device=x.device)
    gathered = {name: torch.cat([job.inputs[name] for job in jobs]) for name in jobs[0].inputs}
    if numerics.exact and len(chunks) > 1:
        with exact_rows(chunks):
            output = network(x, timesteps, **gathered)
    elif lacking := _lacking(sum(rows), numerics.row_buckets):
        filled = {name: _filled(tensor, lacking) for name, tensor in gathered.items()}
        output = network(_filled(x, lacking), _filled(timesteps, lacking), **filled)
    else:
        output = network(x, timesteps, **gathered)
    return list(output[: sum(rows)].split(rows))


def _lacking(rows: int, buckets: Sequence[int]) -> int:
    """How many rows lack to the next bucket; none above the last."""
    return next((bucket - rows for bucket in buckets if bucket >= rows), 0)


def _filled(batch: torch.Tensor, lacking: int) -> torch.Tensor:
    """With copies of its last row behind."""
    return torch.cat([batch, batch[-1:].expand(lacking, *batch.shape[1:])])
