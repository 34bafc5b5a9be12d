"""What may be set at a text encoder, as arguments of `Describe`."""

from __future__ import annotations

from typing import Any

from carrara_models.contracts import Argument


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


CLEAN_CAPTION = Argument("clean_caption", minimum=0, maximum=1, default=0, multiple_of=1)
