"""Trains a CLIP text model to read captions: its states must tell every attribute of the scene.

An attention read-out, thrown away afterwards, does the telling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from carrara_models.drawn_world.captions import caption_words, write_caption
from carrara_models.drawn_world.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZE_RADII,
    Scene,
    Split,
    sample_scene,
)
from carrara_models.training.loop import Batch, LoopSettings, Pace, run_loop
from carrara_models.training.tokenizer import MAX_TOKENS, build_tokenizer

# What is read from a caption. "first" is the object to the left or above, whichever the wording
# names first: the encoder, not the generator, has to work that out.
ATTRIBUTE_VALUES: dict[str, tuple[str, ...]] = {
    "background": tuple(BACKGROUNDS),
    "place": ("none", *PLACES),
    "relation": ("none", "left of", "above"),
    "first shape": SHAPES,
    "first colour": tuple(COLOURS),
    "first size": tuple(SIZE_RADII),
    "second shape": ("none", *SHAPES),
    "second colour": ("none", *COLOURS),
    "second size": ("none", *SIZE_RADII),
}


@dataclass(frozen=True)
class TextEncoderShape:
    """The size of the text model."""

    width: int = 128
    layers: int = 2
    heads: int = 4


class AttributeReadout(nn.Module):
    """One learned query per attribute attends to the states, then one linear layer each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(ATTRIBUTE_VALUES), width) * width**-0.5)
        self.keys = nn.Linear(width, width)
        self.heads = nn.ModuleList(
            nn.Linear(width, len(values)) for values in ATTRIBUTE_VALUES.values()
        )

    def forward(self, states: Tensor) -> list[Tensor]:
        """Scores [B, values] of each attribute, from states [B, L, D]."""
        scores = self.queries @ self.keys(states).transpose(1, 2)  # [B, A, L]
        read = (scores * states.shape[-1] ** -0.5).softmax(dim=-1) @ states  # [B, A, D]
        return [head(read[:, index]) for index, head in enumerate(self.heads)]


class ReadingTextEncoder(nn.Module):
    """What is trained: the text model and its read-out."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.readout = AttributeReadout(text_encoder.config.hidden_size)

    def forward(self, input_ids: Tensor) -> list[Tensor]:
        """Scores [B, values] of each attribute, from token ids [B, L]."""
        return self.readout(self.text_encoder(input_ids).last_hidden_state)


def build_text_encoder(tokenizer: CLIPTokenizer, shape: TextEncoderShape) -> CLIPTextModel:
    """A text model with fresh weights that fits `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=4 * shape.width,
            projection_dim=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [B, MAX_TOKENS], padded and cut as `StableDiffusionPipeline` does."""
    encoded = tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return encoded.input_ids


def attribute_targets(scene: Scene) -> list[int]:
    """The index of each attribute's value in `ATTRIBUTE_VALUES`."""
    values = {"background": scene.background}
    values["place"] = scene.place or "none"
    values["relation"] = scene.relation or "none"
    for which, index in (("first", 0), ("second", 1)):
        thing = scene.objects[index] if index < len(scene.objects) else None
        for field in ("shape", "colour", "size"):
            values[f"{which} {field}"] = getattr(thing, field) if thing else "none"
    return [options.index(values[name]) for name, options in ATTRIBUTE_VALUES.items()]


def train_text_encoder(
    folder: Path,
    *,
    settings: LoopSettings,
    pace: Pace,
    shape: TextEncoderShape,
    omit: float = 0.1,
    resume: bool = False,
) -> None:
    """Trains in `folder`; leaves `tokenizer/` and `text_encoder/` there, in diffusers layout.

    Args:
        folder: Where the run lives.
        settings: The recipe.
        pace: Reports, device and workers.
        shape: The size of the text model.
        omit: How often a caption leaves out one thing; then the read-out learns to guess evenly.
        resume: Goes on from the snapshot in `folder`.
    """
    tokenizer = build_tokenizer(caption_words())
    torch.manual_seed(settings.seed)
    network = ReadingTextEncoder(build_text_encoder(tokenizer, shape))

    def batch_at(step: int) -> Batch:
        rng = np.random.default_rng((settings.seed, step))
        scenes = [sample_scene(rng) for _ in range(settings.batch_size)]
        captions = [write_caption(scene, rng, omit=omit) for scene in scenes]
        targets = torch.tensor([attribute_targets(scene) for scene in scenes])
        return {"input_ids": tokenize(tokenizer, captions), "targets": targets}

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = network(batch["input_ids"])
        losses = [
            F.cross_entropy(scores.float(), batch["targets"][:, index])
            for index, scores in enumerate(logits)
        ]
        return torch.stack(losses).sum(), {}

    def on_sample(step: int) -> Mapping[str, float]:
        return read_accuracy(network, tokenizer, device=pace.device)

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
    tokenizer.save_pretrained(folder / "tokenizer")
    network.text_encoder.save_pretrained(folder / "text_encoder")


def read_accuracy(
    network: ReadingTextEncoder,
    tokenizer: CLIPTokenizer,
    *,
    device: str,
    captions: int = 500,
    split: Split = "heldout",
) -> dict[str, float]:
    """The share of captions from `split` of which everything is read right, in [0, 1]."""
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng, split=split) for _ in range(captions)]
    input_ids = tokenize(tokenizer, [write_caption(scene, rng) for scene in scenes])
    read = torch.stack([scores.argmax(-1) for scores in network(input_ids.to(device))], dim=1)
    right = read.cpu() == torch.tensor([attribute_targets(scene) for scene in scenes])
    return {"read_all": right.all(dim=1).float().mean().item()}
