"""Stable Diffusion 3, tiny: static shift and T5; and one without T5 whose shift depends on size."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from carrara_models.denoising.schedulers import FLOW_SCHEDULERS
from families.case import FamilyCase, Settings
from families.t5 import write_t5, write_t5_tokenizer
from tiny_checkpoints import END, clip_text_config, write_json, write_tokenizer, write_vae

T5_WIDTH = 96


def write(folder: Path, *, with_t5: bool, scheduler: dict[str, object]) -> None:
    vocabulary = write_tokenizer(folder / "tokenizer", pad_token=END)
    write_tokenizer(folder / "tokenizer_2", pad_token="!")
    for name, width in (("text_encoder", 32), ("text_encoder_2", 48)):
        config = clip_text_config(vocabulary, width=width, projection_dim=width)
        CLIPTextModelWithProjection(config).save_pretrained(folder / name)
    if with_t5:
        tokens = write_t5_tokenizer(folder / "tokenizer_3")
        write_t5(folder / "text_encoder_3", tokens=tokens, width=T5_WIDTH)
    SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=32 + 48,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ).save_pretrained(folder / "transformer")
    write_vae(
        folder / "vae",
        block_out_channels=(8, 16, 16),
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000} | scheduler,
    )
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusion3Pipeline",
            "_diffusers_version": "0.42.1",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_3": ["transformers", "T5EncoderModel"] if with_t5 else [None, None],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "tokenizer_3": ["transformers", "T5TokenizerFast"] if with_t5 else [None, None],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def paint(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    settings = dict(settings)
    absent = {
        name: None for name in ("tokenizer_3", "text_encoder_3") if not (folders[0] / name).is_dir()
    }  # diffusers wants to be told, whatever the index says
    pipeline = StableDiffusion3Pipeline.from_pretrained(folders[0], **absent)
    if name := settings.pop("scheduler", None):
        class_name, overrides = FLOW_SCHEDULERS[name]
        own = pipeline.scheduler.config
        pipeline.scheduler = getattr(diffusers, class_name).from_config(own, **overrides)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(settings.pop("seed"))
    return np.asarray(pipeline(generator=generator, **settings).images[0])


CASE = FamilyCase(
    name="sd3",
    checkpoints=(functools.partial(write, with_t5=True, scheduler={"shift": 3.0}),),
    oracle=paint,
    settings={
        "defaults": {"prompt": "a large red circle", "seed": 3, "num_inference_steps": 4},
        "three-prompts": {
            "prompt": "a large red circle",
            "prompt_2": "on the white background",
            "prompt_3": "large circle above the small square",
            "negative_prompt": "blue",
            "negative_prompt_2": "a small square",
            "negative_prompt_3": "white",
            "seed": 2**40 + 1,
            "num_inference_steps": 3,
            "guidance_scale": 9.0,
            "scheduler": "flow-heun",
            "clip_skip": 0,
        },
        "sizes": {
            "prompt": "a blue square",
            "seed": 5,
            "num_inference_steps": 3,
            "height": 48,
            "width": 32,
            "max_sequence_length": 16,
        },
        "unguided": {
            "prompt": "",
            "seed": 6,
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
        },
    },
    stages={
        "text-encoder": (
            "tokenizer",
            "tokenizer_2",
            "tokenizer_3",
            "text_encoder",
            "text_encoder_2",
            "text_encoder_3",
        ),
        "generator": ("transformer", "scheduler"),
        "decoder": ("vae",),
    },
)

WITHOUT_T5 = FamilyCase(
    name="sd3-without-t5",
    checkpoints=(
        functools.partial(write, with_t5=False, scheduler={"use_dynamic_shifting": True}),
    ),
    oracle=paint,
    settings={
        "guided": {
            "prompt": "a large red circle",
            "negative_prompt": "blue",
            "seed": 3,
            "num_inference_steps": 4,
            "max_sequence_length": 32,
        },
        "sizes": {
            "prompt": "a blue square",
            "seed": 5,
            "num_inference_steps": 3,
            "height": 32,
            "width": 48,
        },
        "unguided": {
            "prompt": "a blue square",
            "seed": 6,
            "num_inference_steps": 2,
            "guidance_scale": 0.0,
            "height": 32,
            "width": 48,
        },
    },
    stages={
        "text-encoder": ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"),
        "generator": ("transformer", "scheduler"),
        "decoder": ("vae",),
    },
)
