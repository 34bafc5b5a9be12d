"""Trains a small CLIP: a text and an image tower that meet.

Radford et al. 2021. unCLIP and Kandinsky stand on it: the prior makes its image embedding out of
its text embedding. The evaluation measures with it too. Its text tower tells a generator captions
where there is no better one: of a data set of pictures it is what a text encoder is trained by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from carrara_models.training.data.examples import Examples
from carrara_models.training.data.settings import DataSettings, open_measured, open_source
from carrara_models.training.loop import SKIPPED, Batch, LoopSettings, Pace, Samples, run_loop
from carrara_models.training.text_conditioning import tokens_for
from carrara_models.training.tokenizer import (
    MAX_TOKENS,
    build_caption_tokenizer,
    build_tokenizer_of,
)

MEASURED_PICTURES = 128
CAPTIONS_FOR_WORDS = 2000


@dataclass(frozen=True)
class ClipShape:
    """The size of the two towers.

    Attributes:
        width: Of both, and of the embeddings: a prior takes tokens and embeddings of one width.
        patch: Side of the image tower's patches, in pixels.
        resolution: Of the pictures, in pixels.
    """

    width: int = 128
    text_layers: int = 3
    vision_layers: int = 3
    heads: int = 4
    patch: int = 8
    resolution: int = 64


@dataclass(frozen=True)
class ClipSettings:
    """A run of a CLIP."""

    data: DataSettings = DataSettings()
    shape: ClipShape = ClipShape()
    loop: LoopSettings = LoopSettings(
        steps=3000,
        batch_size=96,
        learning_rate=1e-3,
        weight_decay=0.05,
        warmup_steps=200,
        decay_fraction=0.6,
        ema_decay=0.995,
        bfloat16=False,
    )


def build_clip(tokenizer: CLIPTokenizer, shape: ClipShape) -> CLIPModel:
    """Both towers with fresh weights."""
    common = {
        "hidden_size": shape.width,
        "intermediate_size": 4 * shape.width,
        "num_attention_heads": shape.heads,
        "projection_dim": shape.width,
    }
    config = CLIPConfig(
        text_config={
            **common,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": shape.text_layers,
            "max_position_embeddings": MAX_TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **common,
            "num_hidden_layers": shape.vision_layers,
            "patch_size": shape.patch,
            "image_size": shape.resolution,
        },
        projection_dim=shape.width,
    )
    return CLIPModel(config)


def train_clip(folder: Path, settings: ClipSettings, *, pace: Pace, resume: bool = False) -> None:
    """Trains in `folder`; leaves the whole in `clip/`, and its parts each in a folder of its own.

    These are `tokenizer/`, `text_encoder/`, `image_encoder/` and `image_processor/`. The loss
    contrasts what one process sees at once: more processes or micro-batches make it an easier one.

    Args:
        folder: Where the run lives.
        settings: The recipe.
        pace: Reports, device and workers.
        resume: Goes on from the snapshot in `folder`.
    """
    loop, side = settings.loop, settings.shape.resolution
    source = open_source(settings.data, height=side, width=side, seed=loop.seed)
    measured = open_measured(settings.data, height=side, width=side)
    if settings.data.is_drawn:
        tokenizer = build_caption_tokenizer(settings.data.languages)
    else:
        seen = (source.examples([index]).captions[0] for index in range(CAPTIONS_FOR_WORDS))
        tokenizer = build_tokenizer_of(seen)
    torch.manual_seed(loop.seed)
    clip = build_clip(tokenizer, settings.shape)

    def inputs_of(examples: Examples) -> Batch:
        # In [-1, 1], as the processor's mean and deviation of 0.5 make them of pixels in [0, 1].
        return {"pixel_values": examples.pixels, **tokens_for(tokenizer, examples.captions)}

    def batch_at(positions: Sequence[int]) -> Batch:
        examples = source.examples(positions)
        return {SKIPPED: examples.skipped_counts(), **inputs_of(examples)}

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return clip(**batch, return_loss=True).loss, {}

    def on_sample(step: int) -> Samples:
        batch = inputs_of(measured.examples(range(MEASURED_PICTURES)))
        logits = clip(**{n: t.to(clip.device) for n, t in batch.items()}).logits_per_text
        right = logits.argmax(dim=1).cpu() == torch.arange(len(logits))
        return Samples({"found_its_picture": right.float().mean().item()})

    writes = run_loop(
        clip,
        folder=folder,
        settings=loop,
        pace=pace,
        batch_at=batch_at,
        loss_of=loss_of,
        on_sample=on_sample,
        resume=resume,
    )
    if writes:
        _save(clip, tokenizer, folder)


def _save(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "tokenizer")
    size = clip.config.vision_config.image_size
    CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder / "image_processor")
    towers: tuple[tuple[str, type[nn.Module], object, tuple[str, ...]], ...] = (
        (
            "text_encoder",
            CLIPTextModelWithProjection,
            clip.config.text_config,
            ("text_model.", "text_projection."),
        ),
        (
            "image_encoder",
            CLIPVisionModelWithProjection,
            clip.config.vision_config,
            ("vision_model.", "visual_projection."),
        ),
    )
    weights = clip.state_dict()
    for name, kind, config, prefixes in towers:
        tower = kind(config)
        tower.load_state_dict(
            {key: value for key, value in weights.items() if key.startswith(prefixes)}
        )
        tower.save_pretrained(folder / name)
