"""SDXL's two CLIPs: both penultimate states side by side, and the second one's pooled state."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import conditioning_contract
from carrara_models.describing import described
from carrara_models.errors import NumericalError
from carrara_models.parts import Described, Encoded, Texts
from carrara_models.text_encoders.encodings import encode_pieces, encodings
from carrara_models.text_encoders.options import clip_skip_argument, text_arguments
from carrara_models.text_encoders.tokens import (
    check_vocabulary,
    cut_words,
    load_tokenizer,
    read_texts,
)


@dataclass(frozen=True)
class ClipPairTextEncoder(Described):
    """A `parts.TextEncoder`; bit-identical to `StableDiffusionXLPipeline.encode_prompt`.

    Attributes:
        pipeline: diffusers' own, with its text encoders and nothing else.
        zeroes_absent_negative: Whether an absent negative prompt is all zeros, not an empty text.
    """

    pipeline: Any
    zeroes_absent_negative: bool
    _tokenizing: threading.Lock  # padding and truncation are state of the fast tokenizers

    def split(self, texts: Texts) -> Sequence[Texts]:
        """Each half by itself."""
        return texts.halves

    @torch.no_grad()
    def encode(self, pieces: Sequence[Texts]) -> list[Encoded | NumericalError]:
        """Encodes halves.

        Returns:
            `prompt_embeds` [1, L, D1 + D2] and `pooled_prompt_embeds` [1, P] of each, or their
            `negative_` twins.
        """
        return encode_pieces(self, pieces, self._encode)

    def _encode(self, pieces: Sequence[Texts]) -> list[Encoded]:
        kind = pieces[0]
        if kind.prompt is None and kind.negative_prompt is None and self.zeroes_absent_negative:
            (produced,) = self.produces
            zeros = {
                spec.name: torch.zeros(spec.shape, device=self.device, dtype=self.dtype)
                for spec in produced.tensors
                if spec.name.startswith("negative_")
            }
            return [Encoded(zeros)] * len(pieces)
        # As the pipeline encodes the negative half: like a prompt, but never with skipped layers.
        prefix, clip_skip = "negative_", None
        if kind.prompt is not None:
            prefix, clip_skip = "", kind.clip_skip
        names = (f"{prefix}prompt", f"{prefix}prompt_2")
        pipeline = self.pipeline
        with self._tokenizing:
            embeds, _, pooled, _ = pipeline.encode_prompt(
                *read_texts(pieces, names),
                device=self.device,
                do_classifier_free_guidance=False,
                clip_skip=clip_skip,
            )
            readers = dict(zip(names, (pipeline.tokenizer, pipeline.tokenizer_2), strict=True))
            cuts = [
                {
                    name: cut_words(tokenizer, text, max_length=tokenizer.model_max_length)
                    for name, tokenizer in readers.items()
                    if (text := getattr(piece, name))
                }
                for piece in pieces
            ]
        tensors = {f"{prefix}prompt_embeds": embeds, f"{prefix}pooled_prompt_embeds": pooled}
        return encodings(tensors, cuts=cuts)


def load(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> ClipPairTextEncoder:
    """Loads both tokenizers and text encoders.

    Raises:
        CheckpointError: A file is broken, or a tokenizer and its text encoder do not fit together.
    """
    disable_progress_bar()  # stderr belongs to whoever loads
    loaded = {
        "tokenizer": load_tokenizer(checkpoint, "tokenizer", loader=CLIPTokenizer),
        "tokenizer_2": load_tokenizer(checkpoint, "tokenizer_2", loader=CLIPTokenizer),
        "text_encoder": load_component(
            checkpoint, "text_encoder", loader=CLIPTextModel, dtype=dtype
        ).to(device),
        "text_encoder_2": load_component(
            checkpoint, "text_encoder_2", loader=CLIPTextModelWithProjection, dtype=dtype
        ).to(device),
    }
    for suffix in ("", "_2"):
        encoder = loaded[f"text_encoder{suffix}"]
        check_vocabulary(checkpoint, loaded[f"tokenizer{suffix}"], encoder, suffix=suffix)
    first, second = loaded["text_encoder"], loaded["text_encoder_2"]
    zeroes = checkpoint.options.get("force_zeros_for_empty_prompt", True)
    width = first.config.hidden_size + second.config.hidden_size
    shapes = {
        "prompt_embeds": (1, loaded["tokenizer"].model_max_length, width),
        "pooled_prompt_embeds": (1, second.config.projection_dim),
    }
    return ClipPairTextEncoder(
        pipeline=StableDiffusionXLPipeline(
            vae=None,
            unet=None,
            scheduler=None,
            force_zeros_for_empty_prompt=zeroes,
            add_watermarker=False,
            **loaded,
        ),
        zeroes_absent_negative=zeroes,
        _tokenizing=threading.Lock(),
        **described(
            checkpoint,
            loaded,
            consumes=(),
            produces=(conditioning_contract(shapes, space=checkpoint.conditioning_space),),
            arguments=(
                *text_arguments("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"),
                clip_skip_argument(first, second),
            ),
            device=device,
            dtype=dtype,
        ),
    )
