"""Latent consistency models, tiny: a guidance scale for the UNet, a VAE of size factor 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel

from families.case import FamilyCase, Settings
from tiny_checkpoints import END, write_json, write_text_encoder, write_tokenizer, write_vae


def write(folder: Path) -> None:
    vocabulary = write_tokenizer(folder / "tokenizer", pad_token=END)
    write_text_encoder(folder / "text_encoder", vocabulary, width=32)
    UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
        time_cond_proj_dim=32,
    ).save_pretrained(folder / "unet")
    write_vae(folder / "vae", block_out_channels=(8, 16, 16))
    LCMScheduler().save_pretrained(folder / "scheduler")
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "LatentConsistencyModelPipeline",
            "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "LCMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def paint(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    settings = dict(settings)
    pipeline = LatentConsistencyModelPipeline.from_pretrained(folders[0])
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(settings.pop("seed"))
    return np.asarray(pipeline(generator=generator, **settings).images[0])


CASE = FamilyCase(
    name="latent-consistency",
    checkpoints=(write,),
    oracle=paint,
    settings={
        "plain": {"prompt": "a large red circle", "seed": 3},
        "guided": {
            "prompt": "a blue square",
            "seed": 2**40 + 1,
            "num_inference_steps": 2,
            "guidance_scale": 2.5,
        },
        "sizes": {
            "prompt": "",
            "seed": 5,
            "num_inference_steps": 1,
            "guidance_scale": 0.0,
            "height": 48,
            "width": 80,
        },
    },
    stages={
        "text-encoder": ("tokenizer", "text_encoder"),
        "generator": ("unet", "scheduler"),
        "decoder": ("vae",),
    },
)
