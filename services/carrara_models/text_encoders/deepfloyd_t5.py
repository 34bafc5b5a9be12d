"""DeepFloyd IF's T5: the last hidden state of every token of a lower-cased or cleaned caption."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import IFPipeline
from transformers import T5EncoderModel, T5Tokenizer
from transformers.utils.logging import disable_progress_bar

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import Argument, conditioning_contract
from carrara_models.describing import described
from carrara_models.errors import NumericalError
from carrara_models.parts import Described, Encoded, Texts
from carrara_models.text_encoders.encodings import encode_pieces, encodings
from carrara_models.text_encoders.options import (
    clean_caption_argument,
    cleans_caption,
    text_arguments,
)
from carrara_models.text_encoders.tokens import check_vocabulary, cut_words, load_tokenizer

MAX_LENGTH = 77  # IF was trained with it, and its pipeline has it as a literal


@dataclass(frozen=True)
class DeepFloydTextEncoder(Described):
    """A `parts.TextEncoder`; bit-identical to `IFPipeline.encode_prompt`.

    Attributes:
        pipeline: diffusers' own, with its text encoder and nothing else.
        cleaning: Whether captions are cleaned.
    """

    pipeline: Any
    cleaning: Argument
    _tokenizing: threading.Lock  # padding and truncation are state of the fast tokenizers

    def split(self, texts: Texts) -> Sequence[Texts]:
        """Each half by itself."""
        return texts.halves

    @torch.no_grad()
    def encode(self, pieces: Sequence[Texts]) -> list[Encoded | NumericalError]:
        """Encodes halves; what is beyond 77 tokens is cut and reported.

        Returns:
            `prompt_embeds` or `negative_prompt_embeds`, [1, 77, D], of each.

        Raises:
            BadFieldError: The caption cannot be cleaned, as a library is missing.
        """
        return encode_pieces(self, pieces, self._encode)

    def _encode(self, pieces: Sequence[Texts]) -> list[Encoded]:
        cleans = cleans_caption(pieces[0], self.cleaning)
        field = "prompt" if pieces[0].prompt is not None else "negative_prompt"
        texts = [getattr(piece, field) or "" for piece in pieces]
        with self._tokenizing:
            embeds, _ = self.pipeline.encode_prompt(
                texts, do_classifier_free_guidance=False, device=self.device, clean_caption=cleans
            )
            captions = self.pipeline._text_preprocessing(texts, clean_caption=cleans)
            cuts = [
                {field: cut_words(self.pipeline.tokenizer, caption, max_length=MAX_LENGTH)}
                for caption in captions
            ]
        return encodings({f"{field}_embeds": embeds}, cuts=cuts)


def load(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> DeepFloydTextEncoder:
    """Loads tokenizer and text encoder; the safety checker and the watermarker never.

    Raises:
        CheckpointError: A file is broken, or the two do not fit together.
    """
    disable_progress_bar()  # stderr belongs to whoever loads
    tokenizer = load_tokenizer(checkpoint, "tokenizer", loader=T5Tokenizer)
    text_encoder = load_component(checkpoint, "text_encoder", loader=T5EncoderModel, dtype=dtype)
    check_vocabulary(checkpoint, tokenizer, text_encoder, suffix="")
    cleaning = clean_caption_argument(checkpoint)
    shapes = {"prompt_embeds": (1, MAX_LENGTH, text_encoder.config.d_model)}
    return DeepFloydTextEncoder(
        pipeline=IFPipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder.to(device),
            unet=None,
            scheduler=None,
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
        ),
        cleaning=cleaning,
        _tokenizing=threading.Lock(),
        **described(
            checkpoint,
            {"tokenizer": tokenizer, "text_encoder": text_encoder},
            consumes=(),
            produces=(conditioning_contract(shapes, space=checkpoint.conditioning_space),),
            arguments=(*text_arguments("prompt", "negative_prompt"), cleaning),
            device=device,
            dtype=dtype,
        ),
    )
