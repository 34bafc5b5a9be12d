"""DeepFloyd IF, tiny: T5, a base UNet that paints pixels, and its super-resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel

from carrara_models.denoising.schedulers import SCHEDULERS, UNCLIPPED
from families.case import FamilyCase, Settings, to_uint8
from families.t5 import write_t5, write_t5_tokenizer
from tiny_checkpoints import write_json

# As DeepFloyd published it, but for clipping at once what thresholding would.
SCHEDULE = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.95,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.5,
    "thresholding": True,
    "variance_type": "learned_range",
}
ABSENT = (None, None)
TEXTS = ("prompt", "negative_prompt", "clean_caption")
UNET = {
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "out_channels": 6,
    "cross_attention_dim": 32,
    "encoder_hid_dim": 24,
    "encoder_hid_dim_type": "text_proj",
    "attention_head_dim": 8,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
    "norm_num_groups": 8,
}


def write_base(folder: Path) -> None:
    _write_text_encoder(folder)
    UNet2DConditionModel(sample_size=16, in_channels=3, **UNET).save_pretrained(folder / "unet")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULE)
    _write_index(folder, "IFPipeline")


def write_super_resolution(folder: Path, *, has_text_encoder: bool = True) -> None:
    if has_text_encoder:
        _write_text_encoder(folder)
    UNet2DConditionModel(
        sample_size=32, in_channels=6, class_embed_type="timestep", **UNET
    ).save_pretrained(folder / "unet")
    for name in ("scheduler", "image_noising_scheduler"):
        write_json(folder / name / "scheduler_config.json", SCHEDULE)
    _write_index(
        folder,
        "IFSuperResolutionPipeline",
        image_noising_scheduler=["diffusers", "DDPMScheduler"],
        **({} if has_text_encoder else {"tokenizer": ABSENT, "text_encoder": ABSENT}),
    )


def _write_text_encoder(folder: Path) -> None:
    """The same T5 in every checkpoint, as DeepFloyd published it."""
    tokens = write_t5_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        write_t5(folder / "text_encoder", tokens=tokens, width=24)


def _write_index(folder: Path, class_name: str, **components: Sequence[str | None]) -> None:
    write_json(
        folder / "model_index.json",
        {
            "_class_name": class_name,
            "_diffusers_version": "0.42.1",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "safety_checker": ["deepfloyd_if", "IFSafetyChecker"],
            "watermarker": ["deepfloyd_if", "IFWatermarker"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
        }
        | components,
    )


def load(folder: Path, pipeline_class: Any) -> Any:
    return pipeline_class.from_pretrained(
        folder,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def run(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    generator: torch.Generator,
    pipeline_class: Any = IFPipeline,
    **given: Any,
) -> torch.Tensor:
    """What the pipeline hands on as "pt", [1, 3, H, W]."""
    settings = dict(settings)
    pipeline = load(folder, pipeline_class)
    if name := settings.pop("scheduler", None):
        pipeline.scheduler = scheduler_of(name, dict(pipeline.scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(generator=generator, output_type="pt", **settings, **given).images


def scheduler_of(name: str, config: dict[str, Any]) -> Any:
    """As a user would make it: clipped still, as pixels are, and of a variance that it knows."""
    class_name, overrides = SCHEDULERS[name]
    if "DPMSolver" not in class_name:
        config["variance_type"] = "fixed_small"
    return getattr(diffusers, class_name).from_config(
        config, **({} if overrides == UNCLIPPED else overrides)
    )


def to_picture(pixels: torch.Tensor) -> np.ndarray:
    """As the end of IF's pipelines makes it."""
    pixels = (pixels / 2 + 0.5).clamp(0, 1)
    return to_uint8(pixels.cpu().permute(0, 2, 3, 1).float().numpy())


def paint_base(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    settings = dict(settings)
    generator = torch.Generator("cpu").manual_seed(settings.pop("seed"))
    return to_picture(run(folders[0], settings, generator=generator))


BASE = FamilyCase(
    name="if-base",
    checkpoints=(write_base,),
    oracle=paint_base,
    settings={
        "plain": {
            "prompt": "A large <b>red</b> circle, see https://example.org/10.jpg",
            "seed": 3,
            "num_inference_steps": 4,
        },
        "negative": {
            "prompt": "a large red circle",
            "negative_prompt": "Blue",
            "seed": 2**40 + 1,
            "num_inference_steps": 5,
            "guidance_scale": 4.0,
            "scheduler": "dpm++2m",
        },
        "fixed-variance": {
            "prompt": "a small <i>square</i>",
            "clean_caption": False,
            "seed": 4,
            "num_inference_steps": 3,
            "scheduler": "ddim",
            "eta": 0.5,
        },
        "sigmas": {
            "prompt": "a small square",
            "seed": 4,
            "num_inference_steps": 3,
            "scheduler": "heun",
        },
        "sizes": {
            "prompt": "a blue square",
            "seed": 5,
            "num_inference_steps": 3,
            "height": 24,
            "width": 32,
        },
        "unguided": {"prompt": "", "seed": 6, "num_inference_steps": 2, "guidance_scale": 1.0},
    },
    stages={
        "text-encoder": ("tokenizer", "text_encoder"),
        "generator": ("unet", "scheduler"),
    },
)


def paint(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    settings = dict(settings)
    generator = torch.Generator("cpu").manual_seed(settings.pop("seed"))
    return to_picture(paint_pixels(folders, settings, generator=generator))


def paint_pixels(
    folders: Sequence[Path], settings: Mapping[str, Any], *, generator: torch.Generator
) -> torch.Tensor:
    """Base and super-resolution one after the other, one random generator running through both."""
    prefix = "super_res_"
    texts = {name: value for name, value in settings.items() if name in TEXTS}
    base = {name: value for name, value in settings.items() if not name.startswith(prefix)}
    larger = {
        name.removeprefix(prefix): value
        for name, value in settings.items()
        if name.startswith(prefix)
    }
    if not (folders[1] / "text_encoder").is_dir():
        texts = encode(folders[0], texts)
    return run(
        folders[1],
        texts | larger,
        generator=generator,
        pipeline_class=IFSuperResolutionPipeline,
        image=run(folders[0], base, generator=generator),
    )


def encode(folder: Path, texts: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What the base's text encoder makes of the texts, for a stage that has none."""
    # `__call__` cleans by default and `encode_prompt` does not.
    texts = {"clean_caption": True} | dict(texts)
    embeds, negative = load(folder, IFPipeline).encode_prompt(**texts)
    return {"prompt_embeds": embeds, "negative_prompt_embeds": negative}


CASE = FamilyCase(
    name="if",
    checkpoints=(write_base, write_super_resolution),
    oracle=paint,
    settings={
        "plain": {
            "prompt": "A large red circle",
            "seed": 3,
            "num_inference_steps": 2,
            "super_res_num_inference_steps": 3,
        },
        "noise-and-guidance": {
            "prompt": "a large red circle",
            "negative_prompt": "blue",
            "seed": 2**40 + 1,
            "num_inference_steps": 3,
            "guidance_scale": 1.0,
            "super_res_num_inference_steps": 4,
            "super_res_guidance_scale": 9.0,
            "super_res_noise_level": 700,
            "super_res_scheduler": "dpm++2m",
        },
        "sizes": {
            "prompt": "a blue square",
            "seed": 5,
            "num_inference_steps": 2,
            "height": 24,
            "super_res_num_inference_steps": 2,
            "super_res_height": 48,
            "super_res_width": 40,
            "super_res_noise_level": 0,
        },
        "sigmas": {
            "prompt": "a blue square",
            "seed": 6,
            "num_inference_steps": 2,
            "super_res_num_inference_steps": 3,
            "super_res_scheduler": "euler",
        },
        "unguided": {
            "prompt": "",
            "seed": 7,
            "num_inference_steps": 2,
            "super_res_num_inference_steps": 2,
            "super_res_guidance_scale": 0.0,
        },
    },
    stages={
        "text-encoder": ("tokenizer", "text_encoder"),
        "generator": ("unet", "scheduler"),
        "super-res": ("unet", "scheduler", "image_noising_scheduler"),
    },
)
