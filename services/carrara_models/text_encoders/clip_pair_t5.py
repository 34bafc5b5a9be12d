"""Stable Diffusion 3's text encoders: two CLIPs side by side, and T5's states after theirs.

T5 may be left out, which saves most of the memory; zeros are in its place then.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast
from transformers.utils.logging import disable_progress_bar

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import conditioning_contract
from carrara_models.denoising.settings import chosen
from carrara_models.describing import described
from carrara_models.errors import CheckpointError, NumericalError
from carrara_models.parts import Described, Encoded, Texts
from carrara_models.text_encoders.encodings import encode_pieces, encodings
from carrara_models.text_encoders.options import (
    clip_skip_argument,
    max_sequence_length_argument,
    text_arguments,
)
from carrara_models.text_encoders.tokens import (
    check_vocabulary,
    cut_texts,
    load_tokenizer,
    read_texts,
)

# Of T5, as `StableDiffusion3Pipeline` has them.
LENGTH = max_sequence_length_argument(default=256, maximum=512)


@dataclass(frozen=True)
class ClipPairT5TextEncoder(Described):
    """A `parts.TextEncoder`; bit-identical to `StableDiffusion3Pipeline.encode_prompt`.

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
        """Encodes halves.

        Returns:
            `prompt_embeds` [1, L, D], of CLIP's tokens and then of T5's, and `pooled_prompt_embeds`
            [1, P1 + P2] of each, or their `negative_` twins.

        Raises:
            BadFieldError: The length is outside its range.
        """
        return encode_pieces(self, pieces, self._encode)

    def _encode(self, pieces: Sequence[Texts]) -> list[Encoded]:
        kind = pieces[0]
        length = chosen(kind, LENGTH)
        # As the pipeline encodes the negative half: like a prompt, but never with skipped layers.
        prefix, clip_skip = "negative_", None
        if kind.prompt is not None:
            prefix, clip_skip = "", chosen(kind, clip_skip_argument(*self._clips))
        names = [f"{prefix}prompt", f"{prefix}prompt_2", f"{prefix}prompt_3"]
        pipeline = self.pipeline
        with self._tokenizing:
            embeds, _, pooled, _ = pipeline.encode_prompt(
                *read_texts(pieces, names),
                device=self.device,
                do_classifier_free_guidance=False,
                clip_skip=clip_skip,
                max_sequence_length=length,
            )
            clip_length = pipeline.tokenizer_max_length  # the first CLIP's, for both
            readers = {
                names[0]: (pipeline.tokenizer, clip_length),
                names[1]: (pipeline.tokenizer_2, clip_length),
            }
            if pipeline.tokenizer_3 is not None:
                readers[names[2]] = (pipeline.tokenizer_3, length)
            cuts = [cut_texts(piece, readers) for piece in pieces]
        tensors = {f"{prefix}prompt_embeds": embeds, f"{prefix}pooled_prompt_embeds": pooled}
        return encodings(tensors, cuts=cuts)

    @property
    def _clips(self) -> tuple[Any, Any]:
        return self.pipeline.text_encoder, self.pipeline.text_encoder_2


def load(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> ClipPairT5TextEncoder:
    """Loads both CLIPs, and T5 where the checkpoint has it, with their tokenizers.

    Raises:
        CheckpointError: A file is broken, or a tokenizer and its text encoder do not fit together.
    """
    disable_progress_bar()  # stderr belongs to whoever loads
    loaders = {"": CLIPTextModelWithProjection, "_2": CLIPTextModelWithProjection}
    tokenizers = {"": CLIPTokenizer, "_2": CLIPTokenizer}
    given = {"tokenizer_3", "text_encoder_3"} & set(checkpoint.components)
    if len(given) == 1:
        raise CheckpointError(
            f"{checkpoint.path / 'model_index.json'} names {given.pop()} without its counterpart."
        )
    if given:
        loaders["_3"], tokenizers["_3"] = T5EncoderModel, T5TokenizerFast
    loaded: dict[str, Any] = {
        f"tokenizer{suffix}": load_tokenizer(checkpoint, f"tokenizer{suffix}", loader=loader)
        for suffix, loader in tokenizers.items()
    }
    for suffix, loader in loaders.items():
        encoder = load_component(checkpoint, f"text_encoder{suffix}", loader=loader, dtype=dtype)
        check_vocabulary(checkpoint, loaded[f"tokenizer{suffix}"], encoder, suffix=suffix)
        loaded[f"text_encoder{suffix}"] = encoder.to(device)
    clips = loaded["text_encoder"], loaded["text_encoder_2"]
    pipeline = StableDiffusion3Pipeline(
        transformer=None,
        scheduler=None,
        vae=None,
        **{"tokenizer_3": None, "text_encoder_3": None} | loaded,
    )
    if given:
        width = loaded["text_encoder_3"].config.d_model
    else:
        width = _joint_attention_dim(checkpoint)
        # All that the pipeline asks its transformer for, to make the zeros.
        pipeline.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=width))
    shapes = {
        "prompt_embeds": (1, 0, width),
        "pooled_prompt_embeds": (1, sum(clip.config.projection_dim for clip in clips)),
    }
    return ClipPairT5TextEncoder(
        pipeline=pipeline,
        _tokenizing=threading.Lock(),
        **described(
            checkpoint,
            loaded,
            consumes=(),
            produces=(conditioning_contract(shapes, space=checkpoint.conditioning_space),),
            arguments=(
                *text_arguments(
                    "prompt",
                    "prompt_2",
                    "prompt_3",
                    "negative_prompt",
                    "negative_prompt_2",
                    "negative_prompt_3",
                ),
                clip_skip_argument(*clips),
                LENGTH,
            ),
            device=device,
            dtype=dtype,
        ),
    )


def _joint_attention_dim(checkpoint: Checkpoint) -> int:
    config = checkpoint.config("transformer")
    if config is None:
        raise CheckpointError(
            f"{checkpoint.path} has no text_encoder_3, and so its text encoder needs "
            "transformer/config.json, which says how wide the zeros in its place are."
        )
    return config["joint_attention_dim"]
