"""Flux's text encoders: T5's state of every token, and CLIP's pooled state of the whole prompt."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxPipeline
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast
from transformers.utils.logging import disable_progress_bar

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import conditioning_contract
from carrara_models.denoising.settings import chosen
from carrara_models.describing import described
from carrara_models.errors import NumericalError
from carrara_models.parts import Described, Encoded, Texts
from carrara_models.text_encoders.encodings import encode_pieces, encodings
from carrara_models.text_encoders.options import max_sequence_length_argument, text_arguments
from carrara_models.text_encoders.tokens import (
    check_vocabulary,
    cut_texts,
    load_tokenizer,
    read_texts,
)

# Of T5, as `FluxPipeline` has them.
LENGTH = max_sequence_length_argument(default=512, maximum=512)


@dataclass(frozen=True)
class ClipT5TextEncoder(Described):
    """A `parts.TextEncoder`; bit-identical to `FluxPipeline.encode_prompt`.

    Attributes:
        pipeline: diffusers' own, with its text encoders and nothing else.
    """

    pipeline: Any
    _tokenizing: threading.Lock  # padding and truncation are state of the fast tokenizers

    def split(self, texts: Texts) -> Sequence[Texts]:
        """Each half by itself."""
        return texts.halves

    @torch.no_grad()
    def encode(self, pieces: Sequence[Texts]) -> list[Encoded | NumericalError]:
        """Encodes halves: CLIP reads `prompt`, and T5 `prompt_2` or else the same.

        Returns:
            `prompt_embeds` [1, L, D] and `pooled_prompt_embeds` [1, P] of each, or their
            `negative_` twins.

        Raises:
            BadFieldError: The length is outside its range.
        """
        return encode_pieces(self, pieces, self._encode)

    def _encode(self, pieces: Sequence[Texts]) -> list[Encoded]:
        length = chosen(pieces[0], LENGTH)
        prefix = "" if pieces[0].prompt is not None else "negative_"
        names = [f"{prefix}prompt", f"{prefix}prompt_2"]
        pipeline = self.pipeline
        with self._tokenizing:
            embeds, pooled, _ = pipeline.encode_prompt(
                *read_texts(pieces, names), device=self.device, max_sequence_length=length
            )
            readers = {
                names[0]: (pipeline.tokenizer, pipeline.tokenizer_max_length),
                names[1]: (pipeline.tokenizer_2, length),
            }
            cuts = [cut_texts(piece, readers) for piece in pieces]
        tensors = {f"{prefix}prompt_embeds": embeds, f"{prefix}pooled_prompt_embeds": pooled}
        return encodings(tensors, cuts=cuts)


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> ClipT5TextEncoder:
    """Loads both tokenizers and text encoders.

    Raises:
        CheckpointError: A file is broken, or a tokenizer and its text encoder do not fit together.
    """
    disable_progress_bar()  # stderr belongs to whoever loads
    loaded = {
        "tokenizer": load_tokenizer(checkpoint, "tokenizer", loader=CLIPTokenizer),
        "tokenizer_2": load_tokenizer(checkpoint, "tokenizer_2", loader=T5TokenizerFast),
        "text_encoder": load_component(
            checkpoint, "text_encoder", loader=CLIPTextModel, dtype=dtype
        ).to(device),
        "text_encoder_2": load_component(
            checkpoint, "text_encoder_2", loader=T5EncoderModel, dtype=dtype
        ).to(device),
    }
    for suffix in ("", "_2"):
        encoder = loaded[f"text_encoder{suffix}"]
        check_vocabulary(checkpoint, loaded[f"tokenizer{suffix}"], encoder, suffix=suffix)
    shapes = {
        "prompt_embeds": (1, 0, loaded["text_encoder_2"].config.d_model),
        "pooled_prompt_embeds": (1, loaded["text_encoder"].config.hidden_size),
    }
    return ClipT5TextEncoder(
        pipeline=FluxPipeline(transformer=None, scheduler=None, vae=None, **loaded),
        _tokenizing=threading.Lock(),
        **described(
            checkpoint,
            loaded,
            consumes=(),
            produces=(conditioning_contract(shapes, space=checkpoint.conditioning_space),),
            arguments=(
                *text_arguments("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"),
                LENGTH,
            ),
            device=device,
            dtype=dtype,
        ),
    )
