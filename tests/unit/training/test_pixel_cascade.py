"""The pixel cascade's trainers: what they leave is DeepFloyd IF's; runs resume exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from torch import Tensor

from carrara_models.training import pixel_cascade
from carrara_models.training.loop import LoopSettings, Pace
from carrara_models.training.objectives import Objective
from carrara_models.training.pixel_cascade import (
    PixelShape,
    SuperResolutionTask,
    enlarge,
    shrink,
    train_base,
    train_super_resolution,
)
from carrara_models.training.unconditional import UnconditionalShape, train_unconditional

WIDTH = 8
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def encode(captions: Any) -> Tensor:
    """As good as any text encoder here: the caption's length, at every token."""
    return torch.tensor([[[len(caption) / 50] * WIDTH] * 3 for caption in captions])


def train(part: str, folder: Path, *, stop_at: int | None = None, resume: bool = False) -> None:
    common: dict[str, Any] = {
        "settings": LoopSettings(steps=4, batch_size=2, learning_rate=1e-3, warmup_steps=1),
        "pace": Pace(workers=0, log_every=1, save_every=2, sample_every=4, stop_at=stop_at),
        "objective": Objective(),
        "resume": resume,
    }
    if part == "unconditional":
        shape = UnconditionalShape(widths=(8, 16), resolution=8)
        train_unconditional(folder, shape=shape, sampling_steps=2, **common)
        return
    common |= {"encode": encode, "text_width": WIDTH, "on_sample": lambda unet, step: {}}
    shape = PixelShape(widths=(8, 16), attending=1, resolution=16, attention_heads=2)
    if part == "base":
        train_base(folder, shape=shape, **common)
    else:
        task = SuperResolutionTask(low_resolution=8, crop=8)
        train_super_resolution(folder, shape=shape, task=task, **common)


PARTS = ("unconditional", "base", "super-resolution")


@pytest.mark.parametrize("part", PARTS)
def test_a_run_in_two_parts_gives_the_same_weights_bit_for_bit(part: str, tmp_path: Path) -> None:
    train(part, tmp_path / "whole")
    train(part, tmp_path / "parts", stop_at=2)
    assert json.loads((tmp_path / "parts/snapshot/state.json").read_text())["step"] == 2
    train(part, tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_diffusers_paints_with_the_unconditional_model(tmp_path: Path) -> None:
    train("unconditional", tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2).images[0].size == (8, 8)


def test_diffusers_chains_base_and_super_resolution(tmp_path: Path) -> None:
    train("base", tmp_path / "base")
    train("super-resolution", tmp_path / "super-res")
    absent = {
        "tokenizer": None,
        "text_encoder": None,
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }
    base, larger = (
        pipeline(
            unet=UNet2DConditionModel.from_pretrained(tmp_path / name / "unet"),
            scheduler=DDPMScheduler.from_pretrained(tmp_path / name / "scheduler"),
            **absent,
            **more,
        )
        for name, pipeline, more in (
            ("base", IFPipeline, {}),
            (
                "super-res",
                IFSuperResolutionPipeline,
                {
                    "image_noising_scheduler": DDPMScheduler.from_pretrained(
                        tmp_path / "super-res" / "image_noising_scheduler"
                    )
                },
            ),
        )
    )
    settings = {
        "prompt_embeds": encode(["a circle"]),
        "negative_prompt_embeds": encode([""]),
        "num_inference_steps": 2,
        "output_type": "pt",
    }
    for pipeline in (base, larger):
        pipeline.set_progress_bar_config(disable=True)
    small = base(**settings).images
    assert small.shape == (1, 3, 16, 16)
    assert larger(image=small, height=32, width=32, **settings).images.shape == (1, 3, 32, 32)


def test_the_untrained_variance_is_not_used(tmp_path: Path) -> None:
    schedule = pixel_cascade.pixel_schedule(Objective())
    assert schedule.config.variance_type == "fixed_small"
    assert schedule.config.clip_sample


def test_an_even_picture_stays_as_it_is_when_shrunk_and_enlarged() -> None:
    pictures = torch.from_numpy(np.full((1, 3, 16, 16), 0.3, np.float32))
    torch.testing.assert_close(enlarge(shrink(pictures, 4), 16), pictures)
    wide = torch.zeros(1, 3, 4, 4)
    wide[..., :2] = 1
    assert shrink(wide, 2).flatten()[:2].tolist() == [1, 0]
