"""CLIP's text tower with its projection, for the priors of unCLIP and Kandinsky 2.2."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import KandinskyV22PriorPipeline
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.utils.logging import disable_progress_bar

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.describing import described
from carrara_models.errors import BadFieldError, NumericalError
from carrara_models.parts import Described, Encoded, Texts
from carrara_models.shared_contracts import projected_contract
from carrara_models.text_encoders.encodings import encode_pieces, encodings
from carrara_models.text_encoders.options import text_arguments
from carrara_models.text_encoders.tokens import check_vocabulary, cut_words, load_tokenizer


@dataclass(frozen=True)
class ProjectedTextEncoder(Described):
    """A `parts.TextEncoder`; bit-identical to `_encode_prompt` of both pipelines.

    Attributes:
        pipeline: diffusers' own, with its text encoder and nothing else. Kandinsky's encodes as
            unCLIP's does.
        zero_image_embeds: Of a picture of zeros, [1, E]; None of unCLIP, which needs none, and has
            the empty text for its negative half.
    """

    pipeline: Any
    zero_image_embeds: torch.Tensor | None
    _tokenizing: threading.Lock  # padding and truncation are state of the fast tokenizers

    def split(self, texts: Texts) -> Sequence[Texts]:
        """Each half by itself; all in one where there is a negative prompt.

        Kandinsky then encodes both prompts in one call, in which each one's numbers depend on the
        other being there.
        """
        return texts.halves if texts.negative_prompt is None else (texts,)

    @torch.no_grad()
    def encode(self, pieces: Sequence[Texts]) -> list[Encoded | NumericalError]:
        """Encodes halves, or both at once.

        Returns:
            Of each, `prompt_embeds` [n, L, D], `pooled_prompt_embeds` [n, E] and
            `prompt_attention_mask` bool [n, L], or their `negative_` twins. n is 1; 2 with a
            negative prompt: the second row is for the negative image embedding. Without one,
            `zero_image_embeds` [1, E] takes that one's place.

        Raises:
            BadFieldError: unCLIP is given a negative prompt.
        """
        return encode_pieces(self, pieces, self._encode)

    def _encode(self, pieces: Sequence[Texts]) -> list[Encoded]:
        kind = pieces[0]
        if kind.negative_prompt is not None and self.zero_image_embeds is None:
            allowed = "none: it is always the empty text"
            raise BadFieldError("negative_prompt", kind.negative_prompt, allowed)
        negatives = [
            [] if piece.negative_prompt is None else [piece.negative_prompt] for piece in pieces
        ]
        tensors: dict[str, torch.Tensor] = {}
        with self._tokenizing:
            if kind.prompt is not None:
                rows = zip(pieces, negatives, strict=True)
                tensors |= self._embed(
                    [text for piece, negative in rows for text in (piece.prompt or "", *negative)],
                    prefix="",
                )
                if kind.negative_prompt is None and self.zero_image_embeds is not None:
                    tensors["zero_image_embeds"] = self.zero_image_embeds.expand(len(pieces), -1)
            if kind.negative:
                # As many rows as the prompt has.
                tensors |= self._embed(
                    [text for negative in negatives for text in 2 * negative or [""]],
                    prefix="negative_",
                )
            tokenizer = self.pipeline.tokenizer
            cuts = [
                {
                    name: cut_words(tokenizer, text, max_length=tokenizer.model_max_length)
                    for name in ("prompt", "negative_prompt")
                    if (text := getattr(piece, name))
                }
                for piece in pieces
            ]
        return encodings(tensors, cuts=cuts)

    def _embed(self, rows: list[str], *, prefix: str) -> dict[str, torch.Tensor]:
        pooled, embeds, mask = self.pipeline._encode_prompt(rows, self.device, 1, False)
        return {
            f"{prefix}prompt_embeds": embeds,
            f"{prefix}pooled_prompt_embeds": pooled,
            f"{prefix}prompt_attention_mask": mask,
        }


def load(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> ProjectedTextEncoder:
    """Loads tokenizer and text encoder; of Kandinsky the image encoder too, for one picture.

    Raises:
        CheckpointError: A file is broken, or tokenizer and text encoder do not fit together.
    """
    disable_progress_bar()  # stderr belongs to whoever loads
    is_kandinsky = checkpoint.pipeline_class == "KandinskyV22PriorPipeline"
    tokenizer = load_tokenizer(checkpoint, "tokenizer", loader=CLIPTokenizer)
    text_encoder = load_component(
        checkpoint, "text_encoder", loader=CLIPTextModelWithProjection, dtype=dtype
    ).to(device)
    check_vocabulary(checkpoint, tokenizer, text_encoder, suffix="")
    loaded = {"tokenizer": tokenizer, "text_encoder": text_encoder}
    pipeline = KandinskyV22PriorPipeline(
        prior=None, image_encoder=None, scheduler=None, image_processor=None, **loaded
    )
    zero = None
    if is_kandinsky:
        image_encoder = load_component(
            checkpoint, "image_encoder", loader=CLIPVisionModelWithProjection, dtype=dtype
        ).to(device)
        loaded["image_encoder"] = image_encoder
        zero = _zero_image_embeds(image_encoder)
    contract = projected_contract(
        length=tokenizer.model_max_length,
        width=text_encoder.config.hidden_size,
        pooled_width=text_encoder.config.projection_dim,
        image_width=None if zero is None else zero.shape[1],
        space=checkpoint.conditioning_space,
    )
    names = ("prompt", "negative_prompt") if is_kandinsky else ("prompt",)
    # The image encoder is described, as it was loaded, but has done its work and is not kept.
    return ProjectedTextEncoder(
        pipeline=pipeline,
        zero_image_embeds=zero,
        _tokenizing=threading.Lock(),
        **described(
            checkpoint,
            loaded,
            consumes=(),
            produces=(contract,),
            arguments=text_arguments(*names),
            device=device,
            dtype=dtype,
        ),
    )


@torch.no_grad()
def _zero_image_embeds(image_encoder: Any) -> torch.Tensor:
    """As the pipeline makes it: of a picture of zeros, [1, E]."""
    size = image_encoder.config.image_size
    zeros = torch.zeros(1, 3, size, size).to(image_encoder.device, image_encoder.dtype)
    return image_encoder(zeros)["image_embeds"]
