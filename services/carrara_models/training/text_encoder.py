"""Trains a text model, CLIP's or T5, to read captions: its states must tell the whole scene.

An attention read-out, thrown away afterwards, does the telling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5EncoderModel,
    T5Tokenizer,
)

from carrara_models.drawn_world.captions import write_caption
from carrara_models.drawn_world.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZE_RADII,
    Scene,
    sample_scene,
)
from carrara_models.evaluation.attributes import CaptionKind, held_out_captions
from carrara_models.training.curriculum import PLAIN_CURRICULUM, Curriculum
from carrara_models.training.loop import Batch, LoopSettings, Pace, run_loop
from carrara_models.training.t5 import build_t5, build_t5_tokenizer
from carrara_models.training.tokenizer import MAX_TOKENS, build_caption_tokenizer

TextModelKind = Literal["clip", "t5"]

# What is read from a caption. "first" is the object of a pair to the left or above, whichever the
# wording names first: the encoder, not the generator, has to work that out.
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
    "third relation": ("none", *RELATIONS),
    "third shape": ("none", *SHAPES),
    "third colour": ("none", *COLOURS),
    "third size": ("none", *SIZE_RADII),
}
# On which side a third object stands hangs on a word and on whether the third is its subject, and
# costs at most ln 2 in 1 of 3 scenes: unweighted, it stayed a guess for 900 steps.
ATTRIBUTE_WEIGHTS = {"third relation": 4.0}
READ_CAPTIONS = 500


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

    def __init__(self, text_encoder: CLIPTextModel | T5EncoderModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.readout = AttributeReadout(text_encoder.config.hidden_size)

    def forward(self, **tokens: Tensor) -> list[Tensor]:
        """Scores [B, values] of each attribute, from what `tokenize` makes."""
        return self.readout(self.text_encoder(**tokens).last_hidden_state)


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
    return tokens_for(tokenizer, captions)["input_ids"]


def tokens_for(tokenizer: Any, captions: list[str]) -> dict[str, Tensor]:
    """What a text model is given as its pipeline gives it: T5 the mask of real tokens too."""
    encoded = tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    names = ["input_ids"]
    if isinstance(tokenizer, T5Tokenizer):
        names.append("attention_mask")
    return {name: encoded[name] for name in names}


def attribute_targets(scene: Scene) -> list[int]:
    """The index of each attribute's value in `ATTRIBUTE_VALUES`."""
    values = {"background": scene.background}
    values["place"] = scene.place or "none"
    values["relation"] = scene.relation or "none"
    values["third relation"] = scene.third_relation or "none"
    for which, index in (("first", 0), ("second", 1), ("third", 2)):
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
    kind: TextModelKind = "clip",
    curriculum: Curriculum = PLAIN_CURRICULUM,
    omit: float = 0.1,
    label_smoothing: float = 0.0,
    init: Path | None = None,
    resume: bool = False,
) -> None:
    """Trains in `folder`; leaves `tokenizer/` and `text_encoder/` there, in diffusers layout.

    Args:
        folder: Where the run lives.
        settings: The recipe.
        pace: Reports, device and workers.
        shape: The size of the text model.
        kind: Stable Diffusion's text model, or Imagen's.
        curriculum: What the captions tell, and in which languages.
        omit: How often a caption leaves out one thing; then the read-out learns to guess evenly.
        label_smoothing: Share of each target that is spread over all values: without it, ever more
            of what is read rests on which shapes and colours come together, and held-out pairs
            suffer.
        init: The folder of an earlier run of the same width, to begin with its averaged weights;
            for CLIP's.
        resume: Goes on from the snapshot in `folder`.
    """
    torch.manual_seed(settings.seed)
    if kind == "t5":
        tokenizer = build_t5_tokenizer(curriculum.languages)
        model = build_t5(tokenizer, width=shape.width, layers=shape.layers, heads=shape.heads)
    else:
        tokenizer = build_caption_tokenizer(curriculum.languages)
        model = build_text_encoder(tokenizer, shape)
    network = ReadingTextEncoder(model)
    if init is not None:
        take_over(network, tokenizer, init)

    def batch_at(step: int) -> Batch:
        rng = np.random.default_rng((settings.seed, step))
        scenes = [
            sample_scene(rng, max_objects=curriculum.max_objects)
            for _ in range(settings.batch_size)
        ]
        captions = [
            write_caption(scene, rng, language=curriculum.draw_language(rng), omit=omit)
            for scene in scenes
        ]
        targets = torch.tensor([attribute_targets(scene) for scene in scenes])
        return {**tokens_for(tokenizer, captions), "targets": targets}

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = network(**{name: batch[name] for name in batch if name != "targets"})
        losses = [
            F.cross_entropy(
                scores.float(), batch["targets"][:, index], label_smoothing=label_smoothing
            )
            * ATTRIBUTE_WEIGHTS.get(name, 1.0)
            for index, (name, scores) in enumerate(zip(ATTRIBUTE_VALUES, logits, strict=True))
        ]
        return torch.stack(losses).sum(), {}

    def on_sample(step: int) -> Mapping[str, float]:
        return {
            f"read_all_{language}{'_paraphrases' if paraphrases else ''}": read_accuracy(
                network,
                tokenizer,
                device=pace.device,
                kind=CaptionKind(language, curriculum.max_objects, paraphrases),
            )
            for language in curriculum.languages
            for paraphrases in (False, True)
        }

    # Before the end, so that another run can begin with a snapshot of this one.
    tokenizer.save_pretrained(folder / "tokenizer")
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
    network.text_encoder.save_pretrained(folder / "text_encoder")


@torch.no_grad()
def take_over(network: ReadingTextEncoder, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Begins with the averaged weights of the run in `folder`, read-out included.

    Words keep their vectors, whatever their ids; further words, positions, attributes and layers
    stay as they are.
    """
    old = load_file(folder / "snapshot" / "ema.safetensors")
    old_ids = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
    shared = [(index, old_ids[t]) for t, index in tokenizer.get_vocab().items() if t in old_ids]
    ids, taken = torch.tensor(shared).unbind(-1)
    for name, parameter in network.named_parameters():
        if name not in old:
            continue
        if name.endswith("token_embedding.weight"):
            parameter[ids] = old[name][taken]
        else:
            parameter[: len(old[name])] = old[name]


def read_accuracy(
    network: ReadingTextEncoder,
    tokenizer: Any,
    *,
    device: str,
    kind: CaptionKind,
    captions: int = READ_CAPTIONS,
) -> float:
    """The share of held-out captions of which everything is read right, in [0, 1]."""
    scenes, texts = held_out_captions(captions, seed=1, kind=kind)
    tokens = {name: value.to(device) for name, value in tokens_for(tokenizer, texts).items()}
    read = torch.stack([scores.argmax(-1) for scores in network(**tokens)], dim=1)
    right = read.cpu() == torch.tensor([attribute_targets(scene) for scene in scenes])
    return right.all(dim=1).float().mean().item()
