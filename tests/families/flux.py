"""Flux, tiny: guidance as an input and a shift by size, as dev has; and neither, as schnell."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from families.case import FamilyCase, Settings
from families.t5 import write_t5, write_t5_tokenizer
from tiny_checkpoints import END, write_json, write_text_encoder, write_tokenizer, write_vae

CLIP_WIDTH, T5_WIDTH = 32, 48


def write(folder: Path, *, is_dev: bool) -> None:
    vocabulary = write_tokenizer(folder / "tokenizer", pad_token=END)
    write_text_encoder(folder / "text_encoder", vocabulary, width=CLIP_WIDTH)
    tokens = write_t5_tokenizer(folder / "tokenizer_2")
    write_t5(folder / "text_encoder_2", tokens=tokens, width=T5_WIDTH)
    FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * 4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=is_dev,
        axes_dims_rope=(4, 6, 6),
    ).save_pretrained(folder / "transformer")
    write_vae(
        folder / "vae",
        block_out_channels=(8, 16, 16),
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "base_image_seq_len": 256,
            "base_shift": 0.5,
            "max_image_seq_len": 4096,
            "max_shift": 1.15,
            "num_train_timesteps": 1000,
            "shift": 3.0 if is_dev else 1.0,
            "use_dynamic_shifting": is_dev,
        },
    )
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "FluxPipeline",
            "_diffusers_version": "0.42.1",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "FluxTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def paint(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    settings = {name: value for name, value in settings.items() if name != "scheduler"}
    pipeline = FluxPipeline.from_pretrained(folders[0])
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(settings.pop("seed"))
    return np.asarray(pipeline(generator=generator, **settings).images[0])


STAGES = {
    "text-encoder": ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"),
    "generator": ("transformer", "scheduler"),
    "decoder": ("vae",),
}

CASE = FamilyCase(
    name="flux",
    checkpoints=(functools.partial(write, is_dev=True),),
    oracle=paint,
    settings={
        "plain": {
            "prompt": "a large red circle",
            "seed": 3,
            "num_inference_steps": 4,
            "height": 64,
            "width": 64,
            "max_sequence_length": 24,
        },
        "true-guidance": {
            "prompt": "a large red circle",
            "prompt_2": "on the white background",
            "negative_prompt": "blue",
            "negative_prompt_2": "a small square",
            "seed": 2**40 + 1,
            "num_inference_steps": 3,
            "guidance_scale": 9.0,
            "true_cfg_scale": 4.0,
            "scheduler": "flow-euler",
            "height": 64,
            "width": 64,
            "max_sequence_length": 24,
        },
        "landscape": {
            "prompt": "a blue square",
            "seed": 5,
            "num_inference_steps": 3,
            "guidance_scale": 0.0,
            "height": 48,
            "width": 80,
        },
        "portrait": {
            "prompt": "",
            "negative_prompt": "blue",
            "seed": 6,
            "num_inference_steps": 2,
            "height": 80,
            "width": 48,
        },
    },
    stages=STAGES,
)

SCHNELL = FamilyCase(
    name="flux-schnell",
    checkpoints=(functools.partial(write, is_dev=False),),
    oracle=paint,
    settings={
        "plain": {
            "prompt": "a large red circle",
            "seed": 3,
            "num_inference_steps": 4,
            "height": 64,
            "width": 48,
            "max_sequence_length": 256,
        },
        "true-guidance": {
            "prompt": "a large red circle",
            "negative_prompt": "",
            "seed": 4,
            "num_inference_steps": 2,
            "true_cfg_scale": 5.0,
            "height": 64,
            "width": 48,
            "max_sequence_length": 256,
        },
    },
    stages=STAGES,
)
