"""Builds a tiny CLIP with random weights, in transformers' layout."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

from tiny_checkpoints import clip_text_config, write_json, write_tokenizer

# As OpenAI's CLIPs have it, but for the sizes.
PREPARATION = {
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "crop_size": {"height": 32, "width": 32},
    "size": {"shortest_edge": 32},
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def build_clip(folder: Path) -> Path:
    """Writes a CLIP: pictures of 32 pixels, captions of 20 tokens, 8 features."""
    vocabulary = write_tokenizer(folder, pad_token="!")
    text = clip_text_config(vocabulary, width=16, projection_dim=8, max_position_embeddings=20)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8
    )
    CLIPModel(config).save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PREPARATION)
    return folder
