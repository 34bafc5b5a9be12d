"""Trains a small CLIP on the drawn world: a text and an image tower that meet.

Radford et al. 2021. unCLIP and Kandinsky stand on it: the prior makes its image embedding out of
its text embedding. The evaluation measures with it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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

from carrara_models.drawn_world.captions import write_caption
from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import Split, sample_scene
from carrara_models.training.curriculum import PLAIN_CURRICULUM, Curriculum
from carrara_models.training.loop import Batch, LoopSettings, Pace, run_loop
from carrara_models.training.text_encoder import tokenize
from carrara_models.training.tokenizer import MAX_TOKENS, build_caption_tokenizer

MEASURED_SCENES = 128


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


def train_clip(
    folder: Path,
    *,
    settings: LoopSettings,
    pace: Pace,
    shape: ClipShape,
    curriculum: Curriculum = PLAIN_CURRICULUM,
    resume: bool = False,
) -> None:
    """Trains in `folder`; leaves the whole in `clip/`, and its parts each in a folder of its own.

    These are `tokenizer/`, `text_encoder/`, `image_encoder/` and `image_processor/`.

    Args:
        curriculum: The part of the drawn world that is taught.
        resume: Goes on from the snapshot in `folder`.
    """
    tokenizer = build_caption_tokenizer(curriculum.languages)
    torch.manual_seed(settings.seed)
    clip = build_clip(tokenizer, shape)

    def batch_at(step: int) -> Batch:
        rng = np.random.default_rng((settings.seed, step))
        return _examples(settings.batch_size, rng, tokenizer, shape=shape, curriculum=curriculum)

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        output = clip(
            input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], return_loss=True
        )
        return output.loss, {}

    def on_sample(step: int) -> Mapping[str, float]:
        rng = np.random.default_rng(1)
        batch = _examples(
            MEASURED_SCENES, rng, tokenizer, shape=shape, curriculum=curriculum, split="heldout"
        )
        batch = {name: tensor.to(pace.device) for name, tensor in batch.items()}
        logits = clip(**batch).logits_per_text
        right = logits.argmax(dim=1).cpu() == torch.arange(len(logits))
        return {"found_its_picture": right.float().mean().item()}

    run_loop(
        clip,
        folder=folder,
        settings=settings,
        pace=pace,
        batch_at=batch_at,
        loss_of=loss_of,
        on_sample=on_sample,
        resume=resume,
    )
    _save(clip, tokenizer, folder)


def _examples(
    count: int,
    rng: np.random.Generator,
    tokenizer: CLIPTokenizer,
    *,
    shape: ClipShape,
    curriculum: Curriculum,
    split: Split = "train",
) -> Batch:
    scenes = [
        sample_scene(rng, split=split, max_objects=curriculum.max_objects) for _ in range(count)
    ]
    captions = [
        write_caption(scene, rng, language=curriculum.draw_language(rng)) for scene in scenes
    ]
    pictures = draw_scenes(scenes, height=shape.resolution, width=shape.resolution)
    # In [-1, 1], as the processor's mean and deviation of 0.5 make them of pictures in [0, 1].
    return {"input_ids": tokenize(tokenizer, captions), "pixel_values": pictures}


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
