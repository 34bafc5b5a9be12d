"""Trains any denoiser: clean samples, noise, a network's prediction, and the loop around them.

It knows neither what the samples are (pixels, latents, embeddings) nor what the network is told
beside them; both come with the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from carrara_models.training import objectives
from carrara_models.training.loop import Batch, LoopSettings, Pace, run_loop
from carrara_models.training.objectives import Objective

# The clean samples of a batch; everything else is for the network.
SAMPLES, NOISE, TIMESTEPS = "samples", "noise", "timesteps"


@dataclass(frozen=True)
class Examples:
    """Where a denoiser's batches come from.

    Attributes:
        at: Gives the batch of a step: `samples` [B, ...], and what the network is told beside them.
            Everything random in it is drawn from the generators, so that a step's batch depends on
            nothing but the step.
        network: Called with x_t [B, ...], timesteps [B] and the batch; gives the prediction
            [B, ...].
    """

    at: Callable[[np.random.Generator, torch.Generator], Batch]
    network: Callable[[Tensor, Tensor, Batch], Tensor]


def train_denoiser(
    network: nn.Module,
    *,
    folder: Path,
    settings: LoopSettings,
    pace: Pace,
    schedule: Any,
    objective: Objective,
    examples: Examples,
    on_sample: Callable[[int], Mapping[str, float]],
    resume: bool = False,
) -> None:
    """Trains `network` in `folder`; leaves the averaged parameters in it (Alg. 1, Ho et al. 2020).

    Args:
        schedule: Of `objectives.build_schedule`.
        on_sample: As of `run_loop`.
        resume: Goes on from the snapshot in `folder`.
    """
    chosen: dict[str, Any] = {"schedule": schedule, "objective": objective}

    @torch.no_grad()
    def batch_at(step: int) -> Batch:
        rng = np.random.default_rng((settings.seed, step))
        torch_generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        batch = examples.at(rng, torch_generator)
        samples = batch[SAMPLES]
        return batch | {
            NOISE: torch.randn(samples.shape, generator=torch_generator),
            TIMESTEPS: objectives.sample_timesteps(
                len(samples), torch_generator=torch_generator, **chosen
            ),
        }

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        samples, noise, timesteps = batch[SAMPLES], batch[NOISE], batch[TIMESTEPS]
        noisy = objectives.add_noise(samples, noise, timesteps, **chosen)
        wanted = objectives.target_of(samples, noise, timesteps, **chosen)
        predicted = examples.network(noisy, timesteps, batch)
        return objectives.loss_of(predicted, wanted, timesteps, **chosen), {}

    run_loop(
        network,
        folder=folder,
        settings=settings,
        pace=pace,
        batch_at=batch_at,
        loss_of=loss_of,
        on_sample=on_sample,
        resume=resume,
    )
