"""Stable Diffusion 1.x, tiny: what its own parity tests leave out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from families.case import FamilyCase, Settings
from oracle import paint_with_diffusers
from tiny_checkpoints import build_sd1


def write(folder: Path) -> None:
    build_sd1(folder)


def paint(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    return paint_with_diffusers(folders[0], **settings)


CASE = FamilyCase(
    name="sd",
    checkpoints=(write,),
    oracle=paint,
    settings={
        "plain": {"prompt": "a large red circle", "seed": 1, "num_inference_steps": 3},
        "noise-and-rescale": {
            "prompt": "a large red circle",
            "negative_prompt": "blue",
            "seed": 2,
            "num_inference_steps": 4,
            "guidance_scale": 9.0,
            "guidance_rescale": 0.7,
            "scheduler": "ddim",
            "eta": 0.5,
        },
        "unguided": {
            "prompt": "a small square",
            "seed": 3,
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
            "height": 48,
            "width": 64,
        },
    },
    stages={
        "text-encoder": ("tokenizer", "text_encoder"),
        "generator": ("unet", "scheduler"),
        "decoder": ("vae",),
    },
)
