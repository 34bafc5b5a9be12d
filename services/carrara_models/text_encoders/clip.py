"""CLIP's text tower, as Stable Diffusion conditions on it: the last hidden state of every token."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import conditioning_contract
from carrara_models.describing import described
from carrara_models.errors import NumericalError
from carrara_models.parts import Described, Encoded, Texts
from carrara_models.text_encoders.encodings import encode_pieces, encodings
from carrara_models.text_encoders.options import clip_skip_argument, text_arguments
from carrara_models.text_encoders.tokens import check_vocabulary, cut_words, load_tokenizer


@dataclass(frozen=True)
class ClipTextEncoder(Described):
    """A `parts.TextEncoder`; bit-identical to `StableDiffusionPipeline.encode_prompt`."""

    tokenizer: Any
    text_encoder: Any
    _tokenizing: threading.Lock  # padding and truncation are state of the fast tokenizers

    def split(self, texts: Texts) -> Sequence[Texts]:
        """Each half by itself."""
        return texts.halves

    @torch.no_grad()
    def encode(self, pieces: Sequence[Texts]) -> list[Encoded | NumericalError]:
        """Encodes halves; what is beyond the tokenizer's length is cut and reported.

        Returns:
            `prompt_embeds` or `negative_prompt_embeds`, [1, L, D], of each.
        """
        return encode_pieces(self, pieces, self._encode)

    def _encode(self, pieces: Sequence[Texts]) -> list[Encoded]:
        field = "prompt" if pieces[0].prompt is not None else "negative_prompt"
        tokens, cuts = self._tokenize([getattr(piece, field) or "" for piece in pieces])
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self.device)
        skip = pieces[0].clip_skip if field == "prompt" else None  # the pipeline's rule
        embeds = self._embed(tokens.input_ids.to(self.device), mask, skip)
        return encodings({f"{field}_embeds": embeds}, cuts=[{field: cut} for cut in cuts])

    def _embed(
        self, ids: torch.Tensor, mask: torch.Tensor | None, clip_skip: int | None
    ) -> torch.Tensor:
        if clip_skip is None:
            return self.text_encoder(ids, attention_mask=mask)[0]
        # diffusers 0.42.1 looks for the norm where transformers had it before 5, and fails.
        hidden = self.text_encoder(ids, attention_mask=mask, output_hidden_states=True)
        return self.text_encoder.final_layer_norm(hidden.hidden_states[-(clip_skip + 1)])

    def _tokenize(self, texts: list[str]) -> tuple[Any, list[str]]:
        """The padded tokens, and the words of each text that were cut."""
        length = self.tokenizer.model_max_length
        with self._tokenizing:
            # Textual inversion may have taught the tokenizer words of several tokens.
            texts = TextualInversionLoaderMixin().maybe_convert_prompt(texts, self.tokenizer)
            tokens = self.tokenizer(
                texts,
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )
            cuts = [cut_words(self.tokenizer, text, max_length=length) for text in texts]
            return tokens, cuts


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> ClipTextEncoder:
    """Loads tokenizer and text encoder of a checkpoint that was opened for the text encoder.

    Raises:
        CheckpointError: A file is broken, or the two do not fit together.
    """
    disable_progress_bar()  # stderr belongs to whoever loads
    tokenizer = load_tokenizer(checkpoint, "tokenizer", loader=CLIPTokenizer)
    text_encoder = load_component(checkpoint, "text_encoder", loader=CLIPTextModel, dtype=dtype)
    check_vocabulary(checkpoint, tokenizer, text_encoder, suffix="")
    shape = (1, tokenizer.model_max_length, text_encoder.config.hidden_size)
    return ClipTextEncoder(
        tokenizer=tokenizer,
        text_encoder=text_encoder.to(device),
        _tokenizing=threading.Lock(),
        **described(
            checkpoint,
            {"tokenizer": tokenizer, "text_encoder": text_encoder},
            consumes=(),
            produces=(
                conditioning_contract(
                    {"prompt_embeds": shape}, space=checkpoint.conditioning_space
                ),
            ),
            arguments=(
                *text_arguments("prompt", "negative_prompt"),
                clip_skip_argument(text_encoder),
            ),
            device=device,
            dtype=dtype,
        ),
    )
