"""SDXL, tiny: two CLIPs of unequal width, sizes as conditioning, a VAE of size factor 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from carrara_models.denoising.schedulers import SCHEDULERS
from families.case import FamilyCase, Settings
from tiny_checkpoints import (
    END,
    NOISE_SCHEDULE,
    clip_text_config,
    write_json,
    write_tokenizer,
    write_vae,
)


def write(folder: Path) -> None:
    vocabulary = write_tokenizer(folder / "tokenizer", pad_token=END)
    write_tokenizer(folder / "tokenizer_2", pad_token="!")
    CLIPTextModel(clip_text_config(vocabulary, width=32)).save_pretrained(folder / "text_encoder")
    CLIPTextModelWithProjection(
        clip_text_config(vocabulary, width=48, projection_dim=24, hidden_act="gelu")
    ).save_pretrained(folder / "text_encoder_2")
    UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32 + 48,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    write_vae(folder / "vae", block_out_channels=(8, 16, 16), scaling_factor=0.13025)
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"} | NOISE_SCHEDULE,
    )
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionXLPipeline",
            "_diffusers_version": "0.42.1",
            "force_zeros_for_empty_prompt": True,
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def paint(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    settings = dict(settings)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folders[0], add_watermarker=False)
    if name := settings.pop("scheduler", None):
        class_name, overrides = SCHEDULERS[name]
        own = pipeline.scheduler.config
        pipeline.scheduler = getattr(diffusers, class_name).from_config(own, **overrides)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(settings.pop("seed"))
    return np.asarray(pipeline(generator=generator, **settings).images[0])


CASE = FamilyCase(
    name="sdxl",
    checkpoints=(write,),
    oracle=paint,
    settings={
        "absent-negative": {"prompt": "a large red circle", "seed": 3, "num_inference_steps": 4},
        "two-prompts": {
            "prompt": "a large red circle",
            "prompt_2": "on the white background",
            "negative_prompt": "blue",
            "negative_prompt_2": "a small square",
            "seed": 2**40 + 1,
            "num_inference_steps": 3,
            "guidance_scale": 9.0,
            "scheduler": "dpm++2m",
            "clip_skip": 0,
            "guidance_rescale": 0.7,
        },
        "sizes": {
            "prompt": "a blue square",
            "seed": 5,
            "num_inference_steps": 3,
            "height": 48,
            "width": 80,
            "original_size": (1024, 768),
            "crops_coords_top_left": (16, 0),
            "target_size": (512, 512),
            "negative_original_size": (64, 64),
            "negative_target_size": (128, 64),
        },
        "unguided": {
            "prompt": "",
            "seed": 6,
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
            "scheduler": "ddim",
            "eta": 0.5,
        },
    },
    stages={
        "text-encoder": ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"),
        "generator": ("unet", "scheduler"),
        "decoder": ("vae",),
    },
)
