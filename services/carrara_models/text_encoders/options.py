"""What may be set at a text encoder, as arguments of `Describe`."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
from diffusers.utils import is_bs4_available, is_ftfy_available

from carrara_models.checkpoints import Checkpoint
from carrara_models.contracts import Argument
from carrara_models.errors import BadFieldError
from carrara_models.parts import Texts


def text_arguments(*names: str) -> tuple[Argument, ...]:
    """The texts that an encoder takes, and the wish for the negative half."""
    return (*(Argument(name) for name in names), Argument("guidance"))


def clip_skip_argument(*text_encoders: Any) -> Argument:
    """How many of CLIP's last layers may be skipped: the first is always used."""
    layers = min(encoder.config.num_hidden_layers for encoder in text_encoders)
    return Argument("clip_skip", minimum=0, maximum=layers - 1)


def max_sequence_length_argument(*, default: int, maximum: int) -> Argument:
    """Length that the prompt is cut or padded to, in tokens."""
    return Argument("max_sequence_length", minimum=1, maximum=maximum, default=default)


def clean_caption_argument(checkpoint: Checkpoint) -> Argument:
    """Whether captions are cleaned; by default as `carrara.json` says, else as the pipeline."""
    default = checkpoint.defaults.clean_caption
    if default is None:
        call = inspect.signature(getattr(diffusers, checkpoint.pipeline_class).__call__).parameters
        default = call["clean_caption"].default
    return Argument("clean_caption", minimum=0, maximum=1, default=int(default), multiple_of=1)


def cleans_caption(texts: Texts, argument: Argument) -> bool:
    """Whether the caption is cleaned: as asked for, else by default.

    Raises:
        BadFieldError: A library for it is missing; diffusers would go on without, so that pictures
            would depend on what is installed beside the model.
    """
    cleans = bool(argument.default if texts.clean_caption is None else texts.clean_caption)
    available = {"beautifulsoup4": is_bs4_available(), "ftfy": is_ftfy_available()}
    missing = [name for name, is_there in available.items() if not is_there]
    if cleans and missing:
        allowed = f"false, as this text encoder runs without {' and '.join(missing)}"
        raise BadFieldError("clean_caption", True, allowed)
    return cleans
