"""A frozen text encoder, CLIP's or T5's, as the thing that tells a denoiser a caption."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from carrara_models.drawn_world.captions import without_colours
from carrara_models.fingerprints import component_fingerprint, stage_fingerprint
from carrara_models.training.data.embedding_cache import EmbeddingCache
from carrara_models.training.errors import RecipeError
from carrara_models.training.run_folders import component_of
from carrara_models.training.t5 import MAX_TOKENS

PROMPT_EMBEDS = "prompt_embeds"


class FrozenTextEncoder:
    """Captions to states, as the pipeline will make them.

    Attributes:
        tokenizer: CLIP's or T5's.
        model: In float32, on the CPU.
    """

    def __init__(self, folder: Path, *, cache: Path | None = None) -> None:
        """Loads `tokenizer/` and `text_encoder/`.

        Args:
            folder: Of a run of the text encoder, or of a checkpoint.
            cache: A folder that states are kept in, so that each caption is encoded once.
        """
        config = component_of(folder, "text_encoder") / "config.json"
        kinds: tuple[Any, Any] = (
            (T5Tokenizer, T5EncoderModel)
            if '"t5"' in config.read_text()
            else (CLIPTokenizer, CLIPTextModel)
        )
        self.tokenizer = kinds[0].from_pretrained(component_of(folder, "tokenizer"))
        self.model = (
            kinds[1]
            .from_pretrained(component_of(folder, "text_encoder"))
            .eval()
            .requires_grad_(False)
        )
        self._cache = None
        if cache is not None:
            parts = {
                name: component_fingerprint(folder, name) for name in ("tokenizer", "text_encoder")
            }
            self._cache = EmbeddingCache(cache, fingerprint=stage_fingerprint(parts))

    def check_tells_pixels(self) -> None:
        """Refuses what cannot tell a denoiser of pixels its captions.

        Raises:
            RecipeError: It takes fewer tokens than DeepFloyd IF's pipelines, which paint the
                samples and are what is exported, pad every caption to.
        """
        most = getattr(self.model.config, "max_position_embeddings", MAX_TOKENS)  # T5 has none
        if most < MAX_TOKENS:
            raise RecipeError(
                f"text_encoder takes {most} tokens; a denoiser of pixels is told captions of "
                f"{MAX_TOKENS}: a T5 is, as `carrara train text-encoder --set kind=t5` makes"
            )

    @property
    def width(self) -> int:
        """Of the states."""
        return int(self.model.config.hidden_size)

    def encode(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`prompt_embeds` [B, L, D]."""
        if self._cache is None:
            return self._encode(list(captions))
        each = [
            self._cache.embed(caption, lambda text: self._encode([text])) for caption in captions
        ]
        return {name: torch.cat([tensors[name] for tensors in each]) for name in each[0]}

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> dict[str, Tensor]:
        return {PROMPT_EMBEDS: self.model(**tokens_for(self.tokenizer, captions)).last_hidden_state}


def empty_where(dropped: Tensor, captions: Sequence[str]) -> list[str]:
    """The captions, with the empty one in place of those dropped, bool [B]."""
    return ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]


def colourless_where(jittered: Tensor, captions: Sequence[str]) -> list[str]:
    """The captions, without the names of colours where `jittered`, bool [B], says so."""
    return [
        without_colours(caption) if turned else caption
        for caption, turned in zip(captions, jittered, strict=True)
    ]


def padded_tokens(tokenizer: Any, captions: list[str]) -> Any:
    """Ids and mask [B, L] of captions, as long as the text model takes at most."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )


def tokens_for(tokenizer: Any, captions: list[str]) -> dict[str, Tensor]:
    """What a text model is given as its pipeline gives it: T5 the mask of real tokens too."""
    encoded = padded_tokens(tokenizer, captions)
    names = ["input_ids"]
    if isinstance(tokenizer, T5Tokenizer):
        names.append("attention_mask")
    return {name: encoded[name] for name in names}
