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
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from carrara_models.drawn_world.scenes import Scene
from carrara_models.training.clip_readout import (
    TellingClip,
    contrast_of,
    patch_targets,
    scene_targets,
    telling_loss,
)
from carrara_models.training.colour_jitter import jitter
from carrara_models.training.data.drawn import DrawnWorld
from carrara_models.training.data.examples import Examples, Source
from carrara_models.training.data.settings import DataSettings, open_measured, open_source
from carrara_models.training.errors import RecipeError
from carrara_models.training.loop import SKIPPED, Batch, LoopSettings, Pace, Samples, run_loop
from carrara_models.training.run_folders import load_component
from carrara_models.training.text_conditioning import tokens_for
from carrara_models.training.tokenizer import (
    MAX_TOKENS,
    build_caption_tokenizer,
    build_tokenizer_of,
)

MEASURED_PICTURES = 128
TARGETS, PATCH_TARGETS, JITTERED = "targets", "patch_targets", "jittered"
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
    patch_readout: float = 0.0
    """Weight of a third, likewise: from the image tower's state of each patch before its last
    layer, one linear layer has to tell which object stands there."""
    colour_jitter: float = 0.0
    """Share of the drawn world's pictures whose colours are turned at random, and of which only
    shapes, sizes and places are to be told: so that no shape is known by the colours it was seen
    in."""
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
    asked = [n for n in ("readout", "patch_readout", "colour_jitter") if getattr(settings, n)]
    if asked and not data.shows_scenes:
        raise RecipeError(
            f"{asked[0]} is for scenes of the drawn world; data.location is {data.location!r}, "
            f"data.strokes {data.strokes} and data.blobs {data.blobs}"
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
        tokens = tokens_for(tokenizer, examples.captions)["input_ids"]
        # What comes behind the first token that pads is not read.
        longest = int((tokens != clip.config.text_config.eos_token_id).sum(dim=1).max()) + 1
        return {"pixel_values": examples.pixels, "input_ids": tokens[:, :longest]}

    def batch_at(positions: Sequence[int]) -> Batch:
        examples = source.examples(positions)
        batch = {SKIPPED: examples.skipped_counts(), **inputs_of(examples)}
        if not asked:
            return batch
        scenes = scenes_at(source, positions)
        batch["pixel_values"], jittered = jitter(
            examples.pixels, positions, share=settings.colour_jitter, seed=loop.seed
        )
        batch |= {JITTERED: jittered, TARGETS: scene_targets(scenes, jittered)}
        if settings.patch_readout:
            patches = side // settings.shape.patch
            batch[PATCH_TARGETS] = patch_targets(scenes, jittered, patches=patches)
        return batch

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        targets, patches = batch.pop(TARGETS, None), batch.pop(PATCH_TARGETS, None)
        jittered = batch.pop(JITTERED, None)
        output = clip(**batch, output_hidden_states=patches is not None)
        captions, pictures = output.text_embeds.float(), output.image_embeds.float()
        scalars = {}
        # In float32: a bfloat16 of the similarities, times their scale, is off by tenths.
        with torch.autocast(captions.device.type, enabled=False):
            paired = slice(None) if jittered is None else ~jittered
            scale = clip.logit_scale.exp()
            total = scalars["contrast"] = contrast_of(
                captions[paired], pictures[paired], scale=scale
            )
            if settings.readout:
                assert targets is not None
                told = [
                    telling_loss(network.scores(pictures), targets),
                    telling_loss(network.scores(captions[paired]), targets[paired]),
                ]
                scalars["readout"] = torch.stack(told).mean()
                total = total + settings.readout * scalars["readout"]
            if patches is not None:
                states = output.vision_model_output.hidden_states[-2][:, 1:].float()
                scalars["patch_readout"] = telling_loss(network.patch_scores(states), patches)
                total = total + settings.patch_readout * scalars["patch_readout"]
        return total, scalars if asked else {}

    def on_sample(step: int) -> Samples:
        positions = range(MEASURED_PICTURES)
        batch = inputs_of(measured.examples(positions))
        output = clip(**{n: t.to(clip.device) for n, t in batch.items()})
        right = output.logits_per_text.argmax(dim=1).cpu() == torch.arange(len(positions))
        scalars = {"found_its_picture": right.float().mean().item()}
        if settings.readout:
            known = torch.zeros(len(positions), dtype=torch.bool)
            targets = scene_targets(scenes_at(measured, positions), known)
            for name, embeds in (("picture", output.image_embeds), ("caption", output.text_embeds)):
                told = [scores.argmax(dim=1).cpu() for scores in network.scores(embeds)]
                whole = (torch.stack(told, dim=1) == targets).all(dim=1)
                scalars[f"{name}_tells_all"] = whole.float().mean().item()
        return Samples(scalars)

    network.readout.requires_grad_(bool(settings.readout))
    network.patch_readout.requires_grad_(bool(settings.patch_readout))
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


def scenes_at(world: Source, positions: Sequence[int]) -> list[Scene]:
    """The drawn world's scenes at positions."""
    assert isinstance(world, DrawnWorld)
    return [scene for scene, _ in world.scenes(positions)]


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
