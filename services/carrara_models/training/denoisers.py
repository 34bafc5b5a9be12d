"""Trains any denoiser: clean samples, noise, a network's prediction, and the loop around them.

It knows neither what the samples are (pixels, latents, embeddings) nor what the network is told
beside them; both come with the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carrara_models.training import objectives
from carrara_models.training.loop import Batch, LoopSettings, Pace, Samples, run_loop
from carrara_models.training.objectives import Objective
from carrara_models.training.randomness import Draw, normal_of, torch_generator_of

# The clean samples of a batch; everything else is for the network.
SAMPLES, NOISE, TIMESTEPS = "samples", "noise", "timesteps"


@dataclass(frozen=True)
class DenoisingTask:
    """What is denoised, and what the network is told.

    Attributes:
        batch_at: Gives the examples at positions of the run: `samples` [B, ...], and what the
            network is told beside them. A pure function of the positions, one by one.
        predict: Called with x_t [B, ...], timesteps [B] and the batch; gives the prediction
            [B, ...].
    """

    batch_at: Callable[[Sequence[int]], Batch]
    predict: Callable[[Tensor, Tensor, Batch], Tensor]


def train_denoiser(
    network: nn.Module,
    *,
    folder: Path,
    settings: LoopSettings,
    pace: Pace,
    schedule: Any,
    objective: Objective,
    task: DenoisingTask,
    on_sample: Callable[[int], Samples],
    resume: bool = False,
) -> bool:
    """Trains `network` in `folder`; leaves the averaged parameters in it (Alg. 1, Ho et al. 2020).

    Args:
        schedule: Of `objectives.build_schedule`.
        on_sample: As of `run_loop`.
        resume: Goes on from the snapshot in `folder`.

    Returns:
        As `run_loop`.
    """
    chosen: dict[str, Any] = {"schedule": schedule, "objective": objective}

    @torch.no_grad()
    def batch_at(positions: Sequence[int]) -> Batch:
        batch = task.batch_at(positions)
        timesteps = [
            objectives.sample_timesteps(
                1, torch_generator=torch_generator_of(settings.seed, Draw.TIMESTEP, p), **chosen
            )
            for p in positions
        ]
        shape = batch[SAMPLES].shape[1:]
        return batch | {
            NOISE: normal_of(settings.seed, Draw.NOISE, positions, shape),
            TIMESTEPS: torch.cat(timesteps),
        }

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        samples, noise, timesteps = batch[SAMPLES], batch[NOISE], batch[TIMESTEPS]
        noisy = objectives.add_noise(samples, noise, timesteps, **chosen)
        wanted = objectives.target_of(samples, noise, timesteps, **chosen)
        predicted = task.predict(noisy, timesteps, batch)
        return objectives.loss_of(predicted, wanted, timesteps, **chosen), {}

    return run_loop(
        network,
        folder=folder,
        settings=settings,
        pace=pace,
        batch_at=batch_at,
        loss_of=loss_of,
        on_sample=on_sample,
        resume=resume,
    )
