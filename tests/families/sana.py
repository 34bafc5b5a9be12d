"""Sana, tiny: Gemma 2, 32 pixels per latent cell, both schedulers; bins of 512 pixels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizerFast

from families.case import FamilyCase, Settings
from tiny_checkpoints import write_json

GEMMA_WIDTH = 32
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
PIECES = ("▁", *"abcdefghijklmnopqrstuvwxyzGEUPIABC'-.,:>\n", "re", "red", "blue", "bl", "ue")
MERGES = [("r", "e"), ("re", "d"), ("b", "l"), ("u", "e"), ("bl", "ue")]

DPM_SOLVER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "flow_shift": 3.0,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}
FLOW_EULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}


def write(folder: Path, *, scheduler: dict[str, object]) -> None:
    vocabulary = {piece: i for i, piece in enumerate((*SPECIAL, *PIECES))}
    tokenizer = GemmaTokenizerFast(vocab=vocabulary, merges=MERGES, add_bos_token=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    Gemma2Model(
        Gemma2Config(
            vocab_size=len(vocabulary),
            hidden_size=GEMMA_WIDTH,
            intermediate_size=2 * GEMMA_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        )
    ).save_pretrained(folder / "text_encoder")
    SanaTransformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=GEMMA_WIDTH,
        mlp_ratio=2.0,
        qk_norm="rms_norm_across_heads",
    ).save_pretrained(folder / "transformer")
    AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",) * 2,
        decoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",) * 2,
        encoder_block_out_channels=(4, 4, 8, 8, 8, 8),
        decoder_block_out_channels=(4, 4, 8, 8, 8, 8),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((), (), (), (), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (), (5,), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    ).save_pretrained(folder / "vae")
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "SanaPipeline",
            "_diffusers_version": "0.42.1",
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "text_encoder": ["transformers", "Gemma2Model"],
            "tokenizer": ["transformers", "GemmaTokenizerFast"],
            "transformer": ["diffusers", "SanaTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderDC"],
        },
    )


def paint(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    settings = dict(settings)
    if instruction := settings.pop("complex_human_instruction", None):
        settings["complex_human_instruction"] = instruction.split("\n")
    elif instruction is not None:
        settings["complex_human_instruction"] = None
    pipeline = SanaPipeline.from_pretrained(folders[0])
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(settings.pop("seed"))
    return np.asarray(pipeline(generator=generator, **settings).images[0])


STAGES = {
    "text-encoder": ("tokenizer", "text_encoder"),
    "generator": ("transformer", "scheduler"),
    "decoder": ("vae",),
}

CASE = FamilyCase(
    name="sana",
    checkpoints=(functools.partial(write, scheduler=DPM_SOLVER),),
    oracle=paint,
    settings={
        "binned": {
            "prompt": "a large RED circle",
            "seed": 3,
            "num_inference_steps": 4,
            "height": 256,
            "width": 256,
        },
        "instructed": {
            "prompt": "a large red circle",
            "negative_prompt": "a blue square",
            "seed": 2**40 + 1,
            "num_inference_steps": 3,
            "guidance_scale": 9.0,
            "height": 200,
            "width": 304,
            "complex_human_instruction": "Enhance:\nuser prompt: ",
        },
        "as-asked": {
            "prompt": "a blue square",
            "seed": 5,
            "num_inference_steps": 3,
            "height": 128,
            "width": 96,
            "use_resolution_binning": False,
            "complex_human_instruction": "",
            "max_sequence_length": 16,
        },
        "unguided": {
            "prompt": "a small blue square",
            "seed": 6,
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
            "height": 256,
            "width": 256,
        },
    },
    stages=STAGES,
)

FLOW = FamilyCase(
    name="sana-flow",
    checkpoints=(functools.partial(write, scheduler=FLOW_EULER),),
    oracle=paint,
    settings={
        "binned": {
            "prompt": "a large red circle",
            "negative_prompt": "blue",
            "seed": 3,
            "num_inference_steps": 4,
            "height": 128,
            "width": 128,
        },
        "unguided": {
            "prompt": "a blue square",
            "seed": 4,
            "num_inference_steps": 2,
            "guidance_scale": 0.5,
            "height": 128,
            "width": 128,
        },
    },
    stages=STAGES,
)
