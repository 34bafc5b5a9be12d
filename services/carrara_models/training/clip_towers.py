"""A trained CLIP, frozen: what a prior and the UNet behind it are trained with."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from carrara_models.training.run_folders import load_component
from carrara_models.training.text_conditioning import padded_tokens


@dataclass(frozen=True)
class Towers:
    """A trained CLIP, frozen."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    image_encoder: CLIPVisionModelWithProjection

    @property
    def resolution(self) -> int:
        """Of the pictures that it sees, in pixels."""
        return int(self.image_encoder.config.image_size)

    @property
    def width(self) -> int:
        """Of the embeddings."""
        return int(self.image_encoder.config.projection_dim)

    @torch.no_grad()
    def encode_texts(self, captions: list[str]) -> dict[str, Tensor]:
        """Tokens' states [B, L, D], pooled embeddings [B, E] and the mask of real tokens [B, L]."""
        tokens = padded_tokens(self.tokenizer, captions)
        output = self.text_encoder(tokens.input_ids)
        return {
            "prompt_embeds": output.last_hidden_state,
            "pooled_prompt_embeds": output.text_embeds,
            "prompt_attention_mask": tokens.attention_mask.bool(),
        }

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Image embeddings [B, E] of pictures [B, 3, H, W] in [-1, 1]; resized where need be."""
        size = (self.resolution, self.resolution)
        if pictures.shape[-2:] != size:
            pictures = F.interpolate(pictures, size, mode="bicubic", antialias=True)
        return torch.cat([self.image_encoder(part).image_embeds for part in pictures.split(64)])


def load_towers(folder: Path) -> Towers:
    """Loads what `train_clip` left in a folder, or the prior of a checkpoint."""
    towers = Towers(
        load_component(CLIPTokenizer, folder, "tokenizer"),
        load_component(CLIPTextModelWithProjection, folder, "text_encoder"),
        load_component(CLIPVisionModelWithProjection, folder, "image_encoder"),
    )
    towers.text_encoder.eval().requires_grad_(False)
    towers.image_encoder.eval().requires_grad_(False)
    return towers


@torch.no_grad()
def embedding_of_nothing(towers: Towers) -> Tensor:
    """Of a picture of zeros, [1, E]: what the pipeline takes for an absent negative prompt."""
    side = towers.resolution
    return towers.encode_pictures(torch.zeros(1, 3, side, side))
