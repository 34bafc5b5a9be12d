"""Trains a diffusion prior: from a caption's CLIP embeddings to that of its picture.

Sec. 2.2, Ramesh et al. 2022. The result has the layout of Kandinsky 2.2's prior:
`KandinskyV22PriorPipeline` loads it beside the towers that it was trained behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import PriorTransformer, UnCLIPScheduler
from torch import Tensor
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from carrara_models.drawn_world.captions import write_caption
from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import Split, sample_scene
from carrara_models.training.curriculum import PLAIN_CURRICULUM, Curriculum
from carrara_models.training.denoisers import SAMPLES, Examples, train_denoiser
from carrara_models.training.loop import Batch, LoopSettings, Pace
from carrara_models.training.objectives import Objective, build_schedule

BETA_SCHEDULE = "squaredcos_cap_v2"
CLIP_SAMPLE_RANGE = 5.0  # in deviations of the embeddings
STATISTICS_SCENES = 1024
MEASURED_SCENES = 64
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
class Towers:
    """A trained CLIP, frozen."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    image_encoder: CLIPVisionModelWithProjection

    @property
    def resolution(self) -> int:
        """Of the pictures that it sees, in pixels."""
        return int(self.image_encoder.config.image_size)

    @torch.no_grad()
    def encode_texts(self, captions: list[str]) -> dict[str, Tensor]:
        """Tokens' states [B, L, D], pooled embeddings [B, E] and the mask of real tokens [B, L]."""
        tokens = self.tokenizer(
            captions,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        output = self.text_encoder(tokens.input_ids)
        return {
            "prompt_embeds": output.last_hidden_state,
            "pooled_prompt_embeds": output.text_embeds,
            "prompt_attention_mask": tokens.attention_mask.bool(),
        }

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Image embeddings [B, E] of pictures [B, 3, H, W] in [-1, 1]."""
        return torch.cat([self.image_encoder(part).image_embeds for part in pictures.split(64)])


def load_towers(folder: Path) -> Towers:
    """Loads what `train_clip` left in a folder."""
    towers = Towers(
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder"),
    )
    towers.text_encoder.eval().requires_grad_(False)
    towers.image_encoder.eval().requires_grad_(False)
    return towers


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


def train_prior(
    folder: Path,
    *,
    clip_folder: Path,
    settings: LoopSettings,
    pace: Pace,
    shape: PriorShape,
    curriculum: Curriculum = PLAIN_CURRICULUM,
    caption_dropout: float = 0.1,
    resume: bool = False,
) -> None:
    """Trains in `folder`; leaves `prior/` and `scheduler/` there.

    Args:
        clip_folder: Where `train_clip` left its towers.
        curriculum: The part of the drawn world that is taught.
        caption_dropout: How often the empty caption stands for the picture's own.
        resume: Goes on from the snapshot in `folder`.
    """
    towers = load_towers(clip_folder)
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng((settings.seed, settings.steps))
    statistics = towers.encode_pictures(_pictures(STATISTICS_SCENES, rng, towers, curriculum)[0])
    prior = build_prior(shape, towers, statistics=statistics)
    mean, std = prior.clip_mean.detach(), prior.clip_std.detach()

    def examples_at(rng: np.random.Generator, _: torch.Generator) -> Batch:
        pictures, captions = _pictures(
            settings.batch_size, rng, towers, curriculum, dropout=caption_dropout
        )
        embeds = (towers.encode_pictures(pictures) - mean) / std
        return {SAMPLES: embeds, **towers.encode_texts(captions)}

    def predict(noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        return prior(
            noisy,
            timesteps,
            proj_embedding=batch["pooled_prompt_embeds"],
            encoder_hidden_states=batch["prompt_embeds"],
            attention_mask=batch["prompt_attention_mask"],
        ).predicted_image_embedding

    def on_sample(step: int) -> Mapping[str, float]:
        """How near one step from pure noise comes to the picture's own embedding."""
        pictures, captions = _pictures(
            MEASURED_SCENES, np.random.default_rng(1), towers, curriculum, split="heldout"
        )
        truth = towers.encode_pictures(pictures)
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
        timesteps = torch.full((len(truth),), 999)
        predicted = predict(noise, timesteps, towers.encode_texts(captions)) * std + mean
        cosines = F.cosine_similarity(predicted[:, None] - mean, truth[None] - mean, dim=-1)
        found = cosines.argmax(dim=1) == torch.arange(len(truth))
        return {
            "cosine": cosines.diagonal().mean().item(),
            "found_its_picture": found.float().mean().item(),
        }

    sampling_scheduler().save_pretrained(folder / "scheduler")
    train_denoiser(
        prior,
        folder=folder,
        settings=settings,
        pace=pace,
        schedule=build_schedule(OBJECTIVE, beta_schedule=BETA_SCHEDULE),
        objective=OBJECTIVE,
        examples=Examples(examples_at, predict),
        on_sample=on_sample,
        resume=resume,
    )
    prior.save_pretrained(folder / "prior")


def _pictures(
    count: int,
    rng: np.random.Generator,
    towers: Towers,
    curriculum: Curriculum,
    *,
    dropout: float = 0.0,
    split: Split = "train",
) -> tuple[Tensor, list[str]]:
    """Pictures [count, 3, H, W] and their captions."""
    scenes = [
        sample_scene(rng, split=split, max_objects=curriculum.max_objects) for _ in range(count)
    ]
    captions = [
        ""
        if rng.random() < dropout
        else write_caption(scene, rng, language=curriculum.draw_language(rng))
        for scene in scenes
    ]
    side = towers.resolution
    return draw_scenes(scenes, height=side, width=side), captions
