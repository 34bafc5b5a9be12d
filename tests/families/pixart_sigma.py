"""PixArt-Sigma, tiny: painted in the bins of 256 pixels, with a variance beside the noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel

from carrara_models.denoising.schedulers import SCHEDULERS
from families.case import FamilyCase, Settings
from families.t5 import write_t5, write_t5_tokenizer
from tiny_checkpoints import write_json, write_vae

T5_WIDTH = 32


def write(folder: Path) -> None:
    tokens = write_t5_tokenizer(folder / "tokenizer")
    write_t5(folder / "text_encoder", tokens=tokens, width=T5_WIDTH)
    PixArtTransformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=T5_WIDTH,
        interpolation_scale=0.5,
        use_additional_conditions=False,
    ).save_pretrained(folder / "transformer")
    write_vae(folder / "vae", block_out_channels=(8, 8, 8, 16), scaling_factor=0.13025)
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "DPMSolverMultistepScheduler",
            "algorithm_type": "dpmsolver++",
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "beta_start": 0.0001,
            "num_train_timesteps": 1000,
            "solver_order": 2,
        },
    )
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "PixArtSigmaPipeline",
            "_diffusers_version": "0.42.1",
            "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", "PixArtTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def paint(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    # Said, so that the picture does not depend on which libraries are installed.
    settings = dict(settings)
    pipeline = PixArtSigmaPipeline.from_pretrained(folders[0])
    if name := settings.pop("scheduler", None):
        class_name, overrides = SCHEDULERS[name]
        own = pipeline.scheduler.config
        pipeline.scheduler = getattr(diffusers, class_name).from_config(own, **overrides)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(settings.pop("seed"))
    return np.asarray(pipeline(generator=generator, **settings).images[0])


CASE = FamilyCase(
    name="pixart-sigma",
    checkpoints=(write,),
    oracle=paint,
    settings={
        "defaults": {"prompt": "A large RED circle @user", "seed": 3, "num_inference_steps": 4},
        "binned": {
            "prompt": "a large red circle",
            "negative_prompt": "a blue square",
            "seed": 2**40 + 1,
            "num_inference_steps": 3,
            "guidance_scale": 9.0,
            "scheduler": "euler-ancestral",
            "height": 104,
            "width": 152,
            "max_sequence_length": 16,
        },
        "as-asked": {
            "prompt": "a blue square",
            "seed": 5,
            "num_inference_steps": 3,
            "height": 96,
            "width": 64,
            "use_resolution_binning": False,
        },
        "unguided": {
            "prompt": "a small blue square",
            "seed": 6,
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
            "scheduler": "ddim",
            "eta": 0.5,
        },
    },
    stages={
        "text-encoder": ("tokenizer", "text_encoder"),
        "generator": ("transformer", "scheduler"),
        "decoder": ("vae",),
    },
)
