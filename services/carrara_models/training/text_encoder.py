"""Trains a text model, CLIP's or T5, to read captions: its states must tell the whole scene.

An attention read-out, thrown away afterwards, does the telling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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

from carrara_models.drawn_world.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZE_RADII,
    Scene,
)
from carrara_models.evaluation.attributes import CaptionKind, held_out_captions
from carrara_models.training.data.settings import DataSettings, open_drawn_world
from carrara_models.training.errors import RecipeError
from carrara_models.training.loop import SNAPSHOT, Batch, LoopSettings, Pace, Samples, run_loop
from carrara_models.training.run_folders import component_of, load_component
from carrara_models.training.t5 import build_t5, build_t5_tokenizer
from carrara_models.training.text_conditioning import (
    PROMPT_EMBEDS,
    FrozenTextEncoder,
    tokens_for,
)
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
TARGETS = "targets"
TEACHER_STATES = "teacher_states"
# Of the mean squared error beside the sum over attributes: with it, T5's states came to a tenth of
# the teacher's variance, and read as well as without.
LIKENESS_WEIGHT = 10.0


@dataclass(frozen=True)
class TextEncoderShape:
    """The size of the text model."""

    width: int = 128
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True)
class TextEncoderSettings:
    """A run of a text encoder."""

    kind: TextModelKind = "clip"
    """Stable Diffusion's text model, or Imagen's."""
    init: Path | None = None
    """The folder of an earlier run of the same width, to begin with its averaged weights."""
    teacher: Path | None = None
    """Of a T5: a folder with a `text_encoder/` of CLIP's kind and of the same width, and its
    `tokenizer/`. The states come to resemble its states word by word, so that a UNet that was
    trained behind it is a good one to begin with behind this one."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all values: without it, ever more of what is read
    rests on which shapes and colours come together, and held-out pairs suffer."""
    data: DataSettings = DataSettings(omit=0.1)
    """Where a caption leaves out one thing, the read-out learns to guess evenly."""
    shape: TextEncoderShape = TextEncoderShape()
    loop: LoopSettings = LoopSettings(
        steps=800,
        batch_size=64,
        learning_rate=1e-3,
        decay_fraction=0.5,
        ema_decay=0.995,
        bfloat16=False,
    )


class Teacher:
    """A trained CLIP text model, and which of its states each of T5's tokens stands for.

    Both tokenizers have one token for each word. CLIP puts a token before the first word, which T5
    has no place for, and both pad behind the last.
    """

    def __init__(self, folder: Path, tokenizer: T5Tokenizer, pupil: T5EncoderModel) -> None:
        """Loads `tokenizer/` and `text_encoder/`.

        Raises:
            RecipeError: The pupil is no T5, or the teacher's states are of another width.
        """
        if not isinstance(pupil, T5EncoderModel):
            raise RecipeError("teacher is for a text encoder of kind t5")
        self._clip = FrozenTextEncoder(folder)
        if self._clip.width != pupil.config.hidden_size:
            raise RecipeError(
                f"the teacher's states are {self._clip.width} wide: set shape.width alike, not to "
                f"{pupil.config.hidden_size}"
            )
        self._tokenizer = tokenizer

    def states(self, captions: Sequence[str]) -> Tensor:
        """What T5's states should be, [B, L, D]: the teacher's last state where it ends before.

        Raises:
            RecipeError: A word is one token to the one tokenizer, several to the other.
        """
        texts = list(captions)
        for text in texts:
            own, others = (
                len(each(text).input_ids) for each in (self._tokenizer, self._clip.tokenizer)
            )
            if own + 1 != others:
                raise RecipeError(
                    f"the teacher's tokenizer knows other words: {text!r} has {others - 2} tokens "
                    f"there, and {own - 1} here"
                )
        states = self._clip.encode(texts)[PROMPT_EMBEDS]
        last = states.shape[1] - 1
        places = [min(place + 1, last) for place in range(self._tokenizer.model_max_length)]
        return states[:, places]


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
        """Scores [B, values] of each attribute, from what `tokens_for` makes."""
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


def attribute_targets(scene: Scene) -> list[int]:
    """The index of each attribute's value in `ATTRIBUTE_VALUES`."""
    values = {"background": scene.background}
    values["place"] = scene.place or "none"
    values["relation"] = scene.relation or "none"
    values["third relation"] = scene.third_relation or "none"
    for which, index in (("first", 0), ("second", 1), ("third", 2)):
        thing = scene.objects[index] if index < len(scene.objects) else None
        for trait in ("shape", "colour", "size"):
            values[f"{which} {trait}"] = getattr(thing, trait) if thing else "none"
    return [options.index(values[name]) for name, options in ATTRIBUTE_VALUES.items()]


def train_text_encoder(
    folder: Path, settings: TextEncoderSettings, *, pace: Pace, resume: bool = False
) -> None:
    """Trains in `folder`; leaves `tokenizer/` and `text_encoder/` there, in diffusers layout.

    Args:
        folder: Where the run lives.
        settings: The recipe.
        pace: Reports, device and workers.
        resume: Goes on from the snapshot in `folder`.
    """
    data, shape, loop = settings.data, settings.shape, settings.loop
    if not data.shows_scenes:
        raise RecipeError(
            f"a text encoder learns to tell the drawn world's scenes; data.location is "
            f"{data.location!r}, data.strokes {data.strokes} and data.blobs {data.blobs}"
        )
    torch.manual_seed(loop.seed)
    tokenizer: Any
    if settings.kind == "t5":
        if settings.init is not None:
            raise RecipeError("init is for a text encoder of kind clip")
        tokenizer = build_t5_tokenizer(data.languages)
        model = build_t5(tokenizer, width=shape.width, layers=shape.layers, heads=shape.heads)
    else:
        tokenizer = build_caption_tokenizer(data.languages)
        model = build_text_encoder(tokenizer, shape)
    teacher = None
    if settings.teacher is not None:
        teacher = Teacher(settings.teacher, tokenizer, model)
    network = ReadingTextEncoder(model)
    if settings.init is not None and not resume:
        begin_with(network, tokenizer, settings.init)
    world = open_drawn_world(data, height=1, width=1, seed=loop.seed)

    def batch_at(positions: Sequence[int]) -> Batch:
        scenes, captions = zip(*world.scenes(positions), strict=True)
        targets = torch.tensor([attribute_targets(scene) for scene in scenes])
        batch = {**tokens_for(tokenizer, list(captions)), TARGETS: targets}
        return batch if teacher is None else batch | {TEACHER_STATES: teacher.states(captions)}

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        targets, wanted = batch.pop(TARGETS), batch.pop(TEACHER_STATES, None)
        states = network.text_encoder(**batch).last_hidden_state
        losses = [
            F.cross_entropy(
                scores.float(), targets[:, index], label_smoothing=settings.label_smoothing
            )
            * ATTRIBUTE_WEIGHTS.get(name, 1.0)
            for index, (name, scores) in enumerate(
                zip(ATTRIBUTE_VALUES, network.readout(states), strict=True)
            )
        ]
        reading = torch.stack(losses).sum()
        if wanted is None:
            return reading, {}
        unlike = F.mse_loss(states.float(), wanted)
        return reading + LIKENESS_WEIGHT * unlike, {"reading": reading, "unlike": unlike}

    def on_sample(step: int) -> Samples:
        return Samples(
            {
                f"read_all_{language}{'_paraphrases' if paraphrases else ''}": read_accuracy(
                    network, tokenizer, kind=CaptionKind(language, data.max_objects, paraphrases)
                )
                for language in data.languages
                for paraphrases in (False, True)
            }
        )

    # Before the end, so that another run can begin with a snapshot of this one.
    tokenizer.save_pretrained(folder / "tokenizer")
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
        network.text_encoder.save_pretrained(folder / "text_encoder")


@torch.no_grad()
def begin_with(network: ReadingTextEncoder, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Begins with the averaged weights of the run in `folder`, read-out included.

    Words keep their vectors, whatever their ids; further words, positions, attributes and layers
    stay as they are.
    """
    old = load_file(component_of(folder, SNAPSHOT) / "ema.safetensors")
    old_ids = load_component(CLIPTokenizer, folder, "tokenizer").get_vocab()
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
    kind: CaptionKind,
    captions: int = READ_CAPTIONS,
) -> float:
    """The share of held-out captions of which everything is read right, in [0, 1]."""
    scenes, texts = held_out_captions(captions, seed=1, kind=kind)
    device = next(network.parameters()).device
    tokens = {name: value.to(device) for name, value in tokens_for(tokenizer, texts).items()}
    read = torch.stack([scores.argmax(-1) for scores in network(**tokens)], dim=1)
    right = read.cpu() == torch.tensor([attribute_targets(scene) for scene in scenes])
    return right.all(dim=1).float().mean().item()
