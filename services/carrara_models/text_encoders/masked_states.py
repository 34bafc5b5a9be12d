"""The states of a language model with the mask of its real tokens.

So PixArt-Sigma conditions on T5, and Sana on Gemma 2, which it tells first what to make of the
prompt.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import PixArtSigmaPipeline, SanaPipeline
from transformers import Gemma2Model, GemmaTokenizerFast, T5EncoderModel, T5TokenizerFast
from transformers.utils.logging import disable_progress_bar

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import Argument, conditioning_contract
from carrara_models.denoising.settings import chosen
from carrara_models.describing import described
from carrara_models.errors import NumericalError
from carrara_models.parts import Described, Encoded, Texts
from carrara_models.text_encoders.encodings import encode_pieces, encodings
from carrara_models.text_encoders.options import (
    clean_caption_argument,
    cleans_caption,
    max_sequence_length_argument,
    text_arguments,
)
from carrara_models.text_encoders.tokens import check_vocabulary, cut_words, load_tokenizer

# Both pipelines have 300; how much more is allowed is what the other families' T5 takes.
LENGTH = max_sequence_length_argument(default=300, maximum=512)


@dataclass(frozen=True)
class MaskedStatesTextEncoder(Described):
    """A `parts.TextEncoder`; bit-identical to `encode_prompt` of the two pipelines.

    Attributes:
        pipeline: diffusers' own, with its text encoder and nothing else.
        cleaning: Whether captions are cleaned.
        instruction: What comes before the prompt if the request does not say; "" = nothing.
    """

    pipeline: Any
    cleaning: Argument
    instruction: str
    _tokenizing: threading.Lock  # padding and truncation are state of the fast tokenizers

    def split(self, texts: Texts) -> Sequence[Texts]:
        """Each half by itself."""
        return texts.halves

    @torch.no_grad()
    def encode(self, pieces: Sequence[Texts]) -> list[Encoded | NumericalError]:
        """Encodes halves; the instruction is for the positive one.

        Returns:
            `prompt_embeds` [1, L, D] and `prompt_attention_mask` int64 [1, L], 1 at real tokens,
            of each, or their `negative_` twins.

        Raises:
            BadFieldError: The length is outside its range, or the caption cannot be cleaned, as a
                library is missing.
        """
        return encode_pieces(self, pieces, self._encode)

    def _encode(self, pieces: Sequence[Texts]) -> list[Encoded]:
        kind = pieces[0]
        length, cleans = chosen(kind, LENGTH), cleans_caption(kind, self.cleaning)
        field, instruction = "negative_prompt", ""
        if kind.prompt is not None:
            field, instruction = "prompt", kind.complex_human_instruction
            instruction = self.instruction if instruction is None else instruction
        texts = [getattr(piece, field) or "" for piece in pieces]
        # The pipeline joins its list with newlines, so a list of one is that one.
        extra = {"complex_human_instruction": [instruction]} if instruction else {}
        with self._tokenizing:
            embeds, mask, _, _ = self.pipeline.encode_prompt(
                texts,
                do_classifier_free_guidance=False,
                device=self.device,
                clean_caption=cleans,
                max_sequence_length=length,
                **extra,
            )
            cuts = [
                {field: self._cut(text, instruction, cleans=cleans, length=length)}
                for text in texts
            ]
        tensors = {f"{field}_embeds": embeds, f"{field}_attention_mask": mask}
        return encodings(tensors, cuts=cuts)

    def _cut(self, text: str, instruction: str, *, cleans: bool, length: int) -> str:
        tokenizer = self.pipeline.tokenizer
        [caption] = self.pipeline._text_preprocessing(text, clean_caption=cleans)
        if instruction:
            length += len(tokenizer.encode(instruction)) - 2  # as the pipeline counts
        return cut_words(tokenizer, instruction + caption, max_length=length)


def load(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> MaskedStatesTextEncoder:
    """Loads tokenizer and text encoder of a checkpoint that was opened for the text encoder.

    Raises:
        CheckpointError: A file is broken, or the two do not fit together.
    """
    disable_progress_bar()  # stderr belongs to whoever loads
    is_sana = checkpoint.pipeline_class == "SanaPipeline"
    pipeline_class, tokenizer_class, model_class = (
        (SanaPipeline, GemmaTokenizerFast, Gemma2Model)
        if is_sana
        else (PixArtSigmaPipeline, T5TokenizerFast, T5EncoderModel)
    )
    tokenizer = load_tokenizer(checkpoint, "tokenizer", loader=tokenizer_class)
    text_encoder = load_component(checkpoint, "text_encoder", loader=model_class, dtype=dtype)
    check_vocabulary(checkpoint, tokenizer, text_encoder, suffix="")
    cleaning = clean_caption_argument(checkpoint)
    instruction = ""
    if is_sana:
        call = inspect.signature(SanaPipeline.__call__).parameters
        instruction = "\n".join(call["complex_human_instruction"].default)
    shapes = {
        "prompt_embeds": (1, 0, text_encoder.config.hidden_size),
        "prompt_attention_mask": (1, 0),
    }
    return MaskedStatesTextEncoder(
        pipeline=pipeline_class(
            tokenizer=tokenizer,
            text_encoder=text_encoder.to(device),
            vae=None,
            transformer=None,
            scheduler=None,
        ),
        cleaning=cleaning,
        instruction=instruction,
        _tokenizing=threading.Lock(),
        **described(
            checkpoint,
            {"tokenizer": tokenizer, "text_encoder": text_encoder},
            consumes=(),
            produces=(conditioning_contract(shapes, space=checkpoint.conditioning_space),),
            arguments=(
                *text_arguments("prompt", "negative_prompt"),
                LENGTH,
                cleaning,
                *((Argument("complex_human_instruction"),) if is_sana else ()),
            ),
            device=device,
            dtype=dtype,
        ),
    )
