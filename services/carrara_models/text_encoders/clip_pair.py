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
from carrara_models.parts import Described, Encoded, Texts
from carrara_models.text_encoders.encodings import encoding
from carrara_models.text_encoders.options import clip_skip_argument, text_arguments
from carrara_models.text_encoders.tokens import check_vocabulary, cut_words, load_tokenizer


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
    def encode_text(self, texts: Texts) -> Encoded:
        """Encodes one half.

        Returns:
            `prompt_embeds` [1, L, D1 + D2] and `pooled_prompt_embeds` [1, P], or their `negative_`
            twins.

        Raises:
            NumericalError: The embeddings hold NaN or infinity.
        """
        if texts.prompt is not None:
            fields = {"prompt": texts.prompt, "prompt_2": texts.prompt_2}
            return self._encode(fields, prefix="", clip_skip=texts.clip_skip)
        if texts.negative_prompt is None and self.zeroes_absent_negative:
            (produced,) = self.produces
            return Encoded(
                {
                    spec.name: torch.zeros(spec.shape, device=self.device, dtype=self.dtype)
                    for spec in produced.tensors
                    if spec.name.startswith("negative_")
                }
            )
        fields = {
            "negative_prompt": texts.negative_prompt or "",
            "negative_prompt_2": texts.negative_prompt_2,
        }
        # As the pipeline encodes it: like a prompt, but never with skipped layers.
        return self._encode(fields, prefix="negative_", clip_skip=None)

    def _encode(
        self, fields: dict[str, str | None], *, prefix: str, clip_skip: int | None
    ) -> Encoded:
        first, second = fields.values()
        tokenizers = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        with self._tokenizing:
            embeds, _, pooled, _ = self.pipeline.encode_prompt(
                first,
                second,
                device=self.device,
                do_classifier_free_guidance=False,
                clip_skip=clip_skip,
            )
            cut = {
                name: cut_words(tokenizer, text, max_length=tokenizer.model_max_length)
                for (name, text), tokenizer in zip(fields.items(), tokenizers, strict=True)
                if text
            }
        tensors = {f"{prefix}prompt_embeds": embeds, f"{prefix}pooled_prompt_embeds": pooled}
        return encoding(tensors, cut=cut)


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
