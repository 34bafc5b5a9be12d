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
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from carrara_models.training.data.drawn import DrawnWorld
from carrara_models.training.data.examples import Examples, Source
from carrara_models.training.data.settings import DataSettings, open_measured, open_source
from carrara_models.training.errors import RecipeError
from carrara_models.training.loop import SKIPPED, Batch, LoopSettings, Pace, Samples, run_loop
from carrara_models.training.run_folders import load_component
from carrara_models.training.text_conditioning import tokens_for
from carrara_models.training.text_encoder import ATTRIBUTE_VALUES, attribute_targets
from carrara_models.training.tokenizer import (
    MAX_TOKENS,
    build_caption_tokenizer,
    build_tokenizer_of,
)

MEASURED_PICTURES = 128
VALUES = [len(values) for values in ATTRIBUTE_VALUES.values()]
TARGETS = "targets"
LABEL_SMOOTHING = 0.1
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

    text_encoder: Path | None = None
    """A folder with a `tokenizer/` and a `text_encoder/` of the same size, CLIP's: what the text
    tower begins as."""
    readout: float = 0.0
    """Weight of a second loss, of the drawn world alone: from each embedding, one linear layer has
    to tell every attribute of the scene. Contrast alone needs only what tells the pictures of a
    batch apart, and left shapes out."""
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
    )


class TellingClip(nn.Module):
    """What is trained with a read-out: both towers, and one linear layer for all attributes."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.readout = nn.Linear(clip.config.projection_dim, sum(VALUES))

    def scores(self, embeds: Tensor) -> tuple[Tensor, ...]:
        """Scores [B, values] of each attribute, from embeddings [B, E] of length 1."""
        # As long as a vector of independent normal numbers, which a linear layer is made for.
        return self.readout(embeds * embeds.shape[1] ** 0.5).split(VALUES, dim=1)


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
    loop, data, side = settings.loop, settings.data, settings.shape.resolution
    if settings.readout and (not data.is_drawn or data.strokes):
        raise RecipeError(
            f"readout is for scenes of the drawn world; data.location is {data.location!r} and "
            f"data.strokes {data.strokes}"
        )
    source = open_source(data, height=side, width=side, seed=loop.seed)
    measured = open_measured(data, height=side, width=side)
    if settings.text_encoder is not None:
        tokenizer = load_component(CLIPTokenizer, settings.text_encoder, "tokenizer")
    elif data.is_drawn:
        tokenizer = build_caption_tokenizer(data.languages)
    else:
        seen = (source.examples([index]).captions[0] for index in range(CAPTIONS_FOR_WORDS))
        tokenizer = build_tokenizer_of(seen)
    torch.manual_seed(loop.seed)
    clip = build_clip(tokenizer, settings.shape)
    if settings.text_encoder is not None:
        _begin_text_tower(clip, settings.text_encoder)
    network = TellingClip(clip)

    def inputs_of(examples: Examples) -> Batch:
        # In [-1, 1], as the processor's mean and deviation of 0.5 make them of pixels in [0, 1].
        return {"pixel_values": examples.pixels, **tokens_for(tokenizer, examples.captions)}

    def targets_of(world: Source, positions: Sequence[int]) -> Tensor:
        assert isinstance(world, DrawnWorld)
        return torch.tensor([attribute_targets(scene) for scene, _ in world.scenes(positions)])

    def batch_at(positions: Sequence[int]) -> Batch:
        examples = source.examples(positions)
        batch = {SKIPPED: examples.skipped_counts(), **inputs_of(examples)}
        return batch | {TARGETS: targets_of(source, positions)} if settings.readout else batch

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        targets = batch.pop(TARGETS, None)
        output = clip(**batch)
        captions, pictures = output.text_embeds.float(), output.image_embeds.float()
        # In float32: a bfloat16 of the similarities, times their scale, is off by tenths.
        with torch.autocast(captions.device.type, enabled=False):
            logits = clip.logit_scale.exp() * captions @ pictures.T
            pairs = torch.arange(len(logits), device=logits.device)
            contrast = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
            if targets is None:
                return contrast, {}
            told = [
                F.cross_entropy(scores, targets[:, index], label_smoothing=LABEL_SMOOTHING)
                for embeds in (pictures, captions)
                for index, scores in enumerate(network.scores(embeds))
            ]
            readout = torch.stack(told).mean()
        total = contrast + settings.readout * readout
        return total, {"contrast": contrast, "readout": readout}

    def on_sample(step: int) -> Samples:
        positions = range(MEASURED_PICTURES)
        batch = inputs_of(measured.examples(positions))
        output = clip(**{n: t.to(clip.device) for n, t in batch.items()})
        right = output.logits_per_text.argmax(dim=1).cpu() == torch.arange(len(positions))
        scalars = {"found_its_picture": right.float().mean().item()}
        if settings.readout:
            targets = targets_of(measured, positions)
            for name, embeds in (("picture", output.image_embeds), ("caption", output.text_embeds)):
                told = [scores.argmax(dim=1).cpu() for scores in network.scores(embeds)]
                whole = (torch.stack(told, dim=1) == targets).all(dim=1)
                scalars[f"{name}_tells_all"] = whole.float().mean().item()
        return Samples(scalars)

    if not settings.readout:
        network.readout.requires_grad_(False)
    writes = run_loop(
        network,
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


def _begin_text_tower(clip: CLIPModel, folder: Path) -> None:
    trained = load_component(CLIPTextModel, folder, "text_encoder")
    own, other = clip.config.text_config, trained.config
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if getattr(own, name) != getattr(other, name):
            raise RecipeError(
                f"{folder} has a text model whose {name} is {getattr(other, name)}; this CLIP's "
                f"is {getattr(own, name)}: set shape.width, shape.text_layers and shape.heads alike"
            )
    weights = trained.state_dict()
    clip.text_model.load_state_dict(
        {name.removeprefix("text_model."): weight for name, weight in weights.items()}
    )


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
