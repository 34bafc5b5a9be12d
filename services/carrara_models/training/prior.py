"""Trains a diffusion prior: from a caption's CLIP embeddings to that of its picture.

Sec. 2.2, Ramesh et al. 2022. The result has the layout of Kandinsky 2.2's prior:
`KandinskyV22PriorPipeline` loads it beside the towers that it was trained behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import PriorTransformer, UnCLIPScheduler
from torch import Tensor

from carrara_models.training.clip_towers import Towers, load_towers
from carrara_models.training.data.examples import Source
from carrara_models.training.data.settings import DataSettings, open_measured, open_source
from carrara_models.training.denoisers import SAMPLES, DenoisingTask, train_denoiser
from carrara_models.training.loop import SKIPPED, Batch, LoopSettings, Pace, Samples
from carrara_models.training.objectives import Objective, build_schedule
from carrara_models.training.randomness import Draw, chosen_of
from carrara_models.training.text_conditioning import empty_where

BETA_SCHEDULE = "squaredcos_cap_v2"
CLIP_SAMPLE_RANGE = 5.0  # in deviations of the embeddings
STATISTICS_PICTURES = 1024
MEASURED_PICTURES = 64
# The pooled text, the time, the noisy embedding, and the one whose output is read.
ADDITIONAL_EMBEDDINGS = 4

# The embedding itself is predicted, at every level of noise alike.
OBJECTIVE = Objective(target="sample", times="uniform", uniform_share=1.0)


@dataclass(frozen=True)
class PriorShape:
    """The size of the transformer."""

    layers: int = 4
    heads: int = 4
    head_dim: int = 32


@dataclass(frozen=True)
class PriorSettings:
    """A run of a prior."""

    clip: Path = Path("runs/clip")
    """A folder that a run of a CLIP left."""
    dropout: float = 0.1
    """How often the empty caption stands for the picture's own."""
    data: DataSettings = DataSettings()
    shape: PriorShape = PriorShape()
    loop: LoopSettings = LoopSettings(
        steps=3000, batch_size=64, learning_rate=1e-3, betas=(0.9, 0.98)
    )


def build_prior(shape: PriorShape, towers: Towers, *, statistics: Tensor) -> PriorTransformer:
    """A prior with fresh weights.

    Args:
        statistics: Image embeddings [N, E], whose mean and deviation it takes its samples to have.
    """
    prior = PriorTransformer(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_dim,
        num_layers=shape.layers,
        embedding_dim=statistics.shape[1],
        num_embeddings=towers.tokenizer.model_max_length,
        additional_embeddings=ADDITIONAL_EMBEDDINGS,
    )
    prior.clip_mean.data = statistics.mean(dim=0, keepdim=True)
    prior.clip_std.data = statistics.std(dim=0, keepdim=True)
    prior.clip_mean.requires_grad_(False)
    prior.clip_std.requires_grad_(False)
    return prior


def sampling_scheduler() -> UnCLIPScheduler:
    """The sampler that the checkpoint ships with."""
    return UnCLIPScheduler(
        variance_type="fixed_small_log",
        clip_sample=True,
        clip_sample_range=CLIP_SAMPLE_RANGE,
        prediction_type="sample",
        beta_schedule=BETA_SCHEDULE,
    )


def train_prior(folder: Path, settings: PriorSettings, *, pace: Pace, resume: bool = False) -> None:
    """Trains in `folder`; leaves `prior/` and `scheduler/` there.

    Args:
        folder: Where the run lives.
        settings: The recipe.
        pace: Reports, device and workers.
        resume: Goes on from the snapshot in `folder`.
    """
    loop = settings.loop
    towers = load_towers(settings.clip)
    side = towers.resolution
    source = open_source(settings.data, height=side, width=side, seed=loop.seed)
    measured = open_measured(settings.data, height=side, width=side)
    torch.manual_seed(loop.seed)
    prior = build_prior(settings.shape, towers, statistics=_embeds(source, towers))
    mean, std = prior.clip_mean.detach().clone(), prior.clip_std.detach().clone()

    def batch_at(positions: Sequence[int]) -> Batch:
        examples = source.examples(positions)
        dropped = chosen_of(loop.seed, Draw.DROPOUT, positions, settings.dropout)
        captions = empty_where(dropped, examples.captions)
        return {
            SAMPLES: (towers.encode_pictures(examples.pixels) - mean) / std,
            SKIPPED: examples.skipped_counts(),
            **towers.encode_texts(captions),
        }

    def predict(noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        return prior(
            noisy,
            timesteps,
            proj_embedding=batch["pooled_prompt_embeds"],
            encoder_hidden_states=batch["prompt_embeds"],
            attention_mask=batch["prompt_attention_mask"],
        ).predicted_image_embedding

    def on_sample(step: int) -> Samples:
        """How near one step from pure noise comes to the picture's own embedding."""
        examples = measured.examples(range(MEASURED_PICTURES))
        truth = towers.encode_pictures(examples.pixels)
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
        timesteps = torch.full((len(truth),), 999)
        told = {
            name: value.to(prior.device)
            for name, value in towers.encode_texts(examples.captions).items()
        }
        found = predict(noise.to(prior.device), timesteps.to(prior.device), told).cpu()
        cosines = F.cosine_similarity((found * std)[:, None], (truth - mean)[None], dim=-1)
        right = cosines.argmax(dim=1) == torch.arange(len(truth))
        return Samples(
            {
                "cosine": cosines.diagonal().mean().item(),
                "found_its_picture": right.float().mean().item(),
            }
        )

    writes = train_denoiser(
        prior,
        folder=folder,
        settings=loop,
        pace=pace,
        schedule=build_schedule(OBJECTIVE, beta_schedule=BETA_SCHEDULE),
        objective=OBJECTIVE,
        task=DenoisingTask(batch_at, predict),
        on_sample=on_sample,
        resume=resume,
    )
    if writes:
        prior.save_pretrained(folder / "prior")
        sampling_scheduler().save_pretrained(folder / "scheduler")


def _embeds(source: Source, towers: Towers) -> Tensor:
    return towers.encode_pictures(source.examples(range(STATISTICS_PICTURES)).pixels)
