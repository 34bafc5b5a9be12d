"""DDPM and DDIM, tiny: a UNet that takes no prompt, with a scheduler of either kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from families.case import FamilyCase, Settings
from tiny_checkpoints import write_json

# As in google/ddpm-cifar10-32.
SCHEDULE = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "variance_type": "fixed_large",
}


def write_ddpm(folder: Path) -> None:
    _write(folder, pipeline_class="DDPMPipeline", sample_size=16)


def write_ddim(folder: Path) -> None:
    """With DDPM's scheduler, of which the pipeline makes its own."""
    _write(folder, pipeline_class="DDIMPipeline", sample_size=(8, 24))


def _write(folder: Path, *, pipeline_class: str, sample_size: int | tuple[int, int]) -> None:
    UNet2DModel(
        sample_size=sample_size,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULE)
    write_json(
        folder / "model_index.json",
        {
            "_class_name": pipeline_class,
            "_diffusers_version": "0.42.1",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        },
    )


def paint_ddpm(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    return _paint(DDPMPipeline.from_pretrained(folders[0]), settings)


def paint_ddim(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    return _paint(DDIMPipeline.from_pretrained(folders[0]), settings)


def _paint(pipeline: DDPMPipeline | DDIMPipeline, settings: Settings) -> np.ndarray:
    settings = dict(settings)
    classes = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}
    if name := settings.pop("scheduler", None):
        pipeline.scheduler = classes[name].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(settings.pop("seed"))
    return np.asarray(pipeline(generator=generator, **settings).images[0])


STAGES = {"generator": ("unet", "scheduler")}

DDPM = FamilyCase(
    name="ddpm",
    checkpoints=(write_ddpm,),
    oracle=paint_ddpm,
    settings={
        "plain": {"seed": 3, "num_inference_steps": 4},
        "ddim": {"seed": 4, "num_inference_steps": 3, "scheduler": "ddim"},
        "another-seed": {"seed": 2**40 + 1, "num_inference_steps": 5},
    },
    stages=STAGES,
)

DDIM = FamilyCase(
    name="ddim",
    checkpoints=(write_ddim,),
    oracle=paint_ddim,
    settings={
        "plain": {"seed": 3, "num_inference_steps": 4},
        "noise": {"seed": 3, "num_inference_steps": 3, "eta": 0.7},
    },
    stages=STAGES,
)
