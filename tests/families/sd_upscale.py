"""Stable Diffusion's x4 upscaler, tiny: after Stable Diffusion 1, and after both stages of IF."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)

from carrara_models.denoising.schedulers import SCHEDULERS
from families import deepfloyd_if
from families.case import FamilyCase, Settings
from tiny_checkpoints import (
    NOISE_SCHEDULE,
    build_sd1,
    write_json,
    write_text_encoder,
    write_tokenizer,
    write_vae,
)

PREFIX = "upscaler_"


def write_sd1(folder: Path) -> None:
    build_sd1(folder)


def write(folder: Path) -> None:
    vocabulary = write_tokenizer(folder / "tokenizer", pad_token="!")
    write_text_encoder(folder / "text_encoder", vocabulary, width=48)
    UNet2DConditionModel(
        sample_size=16,
        in_channels=7,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=48,
        attention_head_dim=8,
        only_cross_attention=(True, False),
        use_linear_projection=True,
        num_class_embeds=1000,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    write_vae(folder / "vae", block_out_channels=(8, 16, 16), scaling_factor=0.08333)
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "DDIMScheduler"} | NOISE_SCHEDULE | {"prediction_type": "v_prediction"},
    )
    write_json(
        folder / "low_res_scheduler" / "scheduler_config.json",
        {
            "_class_name": "DDPMScheduler",
            "beta_end": 0.02,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.0001,
            "clip_sample": True,
            "num_train_timesteps": 1000,
            "variance_type": "fixed_small",
        },
    )
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionUpscalePipeline",
            "_diffusers_version": "0.42.1",
            "low_res_scheduler": ["diffusers", "DDPMScheduler"],
            "max_noise_level": 350,
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def upscale(
    folder: Path, settings: Mapping[str, Any], *, image: torch.Tensor, generator: torch.Generator
) -> np.ndarray:
    texts = {name: value for name, value in settings.items() if "prompt" in name}
    own = {
        name.removeprefix(PREFIX): value
        for name, value in settings.items()
        if name.startswith(PREFIX)
    }
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(folder)
    if name := own.pop("scheduler", None):
        class_name, overrides = SCHEDULERS[name]
        config = pipeline.scheduler.config
        pipeline.scheduler = getattr(diffusers, class_name).from_config(config, **overrides)
    pipeline.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        # That pixels in [-1, 1] are taken as they are is what IF's documentation relies on.
        warnings.filterwarnings("ignore", "Passing `image` as torch tensor with value range")
        images = pipeline(image=image, generator=generator, **texts, **own).images
    return np.asarray(images[0])


def paint_after_sd1(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    first = {name: value for name, value in settings.items() if not name.startswith(PREFIX)}
    generator = torch.Generator("cpu").manual_seed(first.pop("seed"))
    pipeline = StableDiffusionPipeline.from_pretrained(folders[0])
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(generator=generator, output_type="pt", **first).images
    return upscale(folders[1], settings, image=image, generator=generator)


def paint_after_if(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    first = {name: value for name, value in settings.items() if not name.startswith(PREFIX)}
    generator = torch.Generator("cpu").manual_seed(first.pop("seed"))
    image = deepfloyd_if.paint_pixels(folders, first, generator=generator)
    return upscale(folders[2], settings, image=image, generator=generator)


STAGES = {
    "text-encoder": ("tokenizer", "text_encoder"),
    "generator": ("unet", "scheduler"),
    "upscaler": ("unet", "low_res_scheduler", "scheduler"),
    "decoder": ("vae",),
}

CASE = FamilyCase(
    name="sd-upscale",
    checkpoints=(write_sd1, write),
    oracle=paint_after_sd1,
    settings={
        "plain": {
            "prompt": "a large red circle",
            "seed": 3,
            "num_inference_steps": 2,
            "height": 32,
            "width": 32,
            "upscaler_num_inference_steps": 3,
        },
        "noise-and-guidance": {
            "prompt": "a large red circle",
            "negative_prompt": "blue",
            "seed": 2**40 + 1,
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
            "height": 32,
            "width": 32,
            "upscaler_num_inference_steps": 2,
            "upscaler_guidance_scale": 4.0,
            "upscaler_noise_level": 350,
            "upscaler_scheduler": "euler",
        },
        "sizes": {
            "prompt": "a blue square",
            "seed": 5,
            "num_inference_steps": 1,
            "height": 32,
            "width": 48,
            "upscaler_num_inference_steps": 2,
            "upscaler_noise_level": 0,
        },
        "unguided": {
            "prompt": "",
            "seed": 6,
            "num_inference_steps": 1,
            "height": 32,
            "width": 32,
            "upscaler_num_inference_steps": 2,
            "upscaler_guidance_scale": 1.0,
            "upscaler_eta": 0.5,
        },
    },
    stages=STAGES,
)

IF_THREE = FamilyCase(
    name="if-three",
    checkpoints=(deepfloyd_if.write_base, deepfloyd_if.write_super_resolution, write),
    oracle=paint_after_if,
    settings={
        "plain": {
            "prompt": "a large red circle",
            "seed": 3,
            "num_inference_steps": 2,
            "super_res_num_inference_steps": 2,
            "upscaler_num_inference_steps": 2,
        },
        "own-arguments": {
            "prompt": "a small square",
            "negative_prompt": "blue",
            "seed": 4,
            "num_inference_steps": 1,
            "guidance_scale": 1.0,
            "super_res_num_inference_steps": 2,
            "super_res_noise_level": 100,
            "super_res_width": 24,
            "upscaler_num_inference_steps": 1,
            "upscaler_noise_level": 50,
            "upscaler_scheduler": "ddpm",
        },
        "unguided": {
            "prompt": "a blue square",
            "seed": 5,
            "num_inference_steps": 1,
            "guidance_scale": 1.0,
            "super_res_num_inference_steps": 1,
            "super_res_guidance_scale": 1.0,
            "upscaler_num_inference_steps": 2,
            "upscaler_guidance_scale": 1.0,
        },
    },
    stages={"super-res": ("unet", "scheduler", "image_noising_scheduler"), **STAGES},
)
