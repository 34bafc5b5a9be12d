"""A cascade folder of trained parts: plain diffusers paints with it, and we paint the same."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil

import chains
from carrara_models.cascade_folders import read_cascade
from carrara_models.checkpoints import open_checkpoint, stages_of
from carrara_models.training.export import (
    PixelDefaults,
    UnclipDefaults,
    export_pixel_cascade,
    export_unclip_cascade,
)
from families import deepfloyd_if, kandinsky
from families.cascade_folders import paint

SCHEDULE = {
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "variance_type": "fixed_small",
}


def build_unet(folder: Path, *, sample_size: int, **options: Any) -> None:
    unet = UNet2DConditionModel(sample_size=sample_size, **deepfloyd_if.UNET, **options)
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(**SCHEDULE, clip_sample=True).save_pretrained(folder / "scheduler")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as the trainers leave them, each with what is not exported too."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    runs = tmp_path_factory.mktemp("runs")
    deepfloyd_if.write_base(runs / "t5")
    build_unet(runs / "base", sample_size=16, in_channels=3)
    build_unet(runs / "super-res", sample_size=32, in_channels=6, class_embed_type="timestep")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(
        runs / "super-res" / "image_noising_scheduler"
    )
    kandinsky.write_prior_checkpoint(runs / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 16}).save_pretrained(
        runs / "clip" / "image_processor"
    )
    kandinsky.write_decoder_checkpoint(runs / "image-unet", variance_type="fixed_small")
    DDIMScheduler(
        **{name: value for name, value in SCHEDULE.items() if name != "variance_type"},
        clip_sample=False,
    ).save_pretrained(runs / "image-unet" / "scheduler")
    return runs


def export_pixel(runs: Path, output: Path, **options: Any) -> Path:
    export_pixel_cascade(
        output,
        text_encoder_folder=runs / "t5",
        base_folder=runs / "base",
        super_resolution_folder=runs / "super-res",
        defaults=PixelDefaults(num_inference_steps=4, super_res_num_inference_steps=3),
        **options,
    )
    return output


def export_unclip(runs: Path, output: Path) -> Path:
    export_unclip_cascade(
        output,
        clip_folder=runs / "clip",
        prior_folder=runs / "clip",
        image_unet_folder=runs / "image-unet",
        defaults=UnclipDefaults(prior_num_inference_steps=3, num_inference_steps=2, width=32),
    )
    return output


EXPORTS: dict[str, Callable[[Path, Path], Path]] = {
    "pixel": export_pixel,
    "pixel-ddpm": lambda runs, output: export_pixel(runs, output, scheduler="ddpm"),
    "unclip": export_unclip,
}


@pytest.fixture(scope="module", params=EXPORTS)
def exported(
    request: pytest.FixtureRequest, runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return EXPORTS[request.param](runs, tmp_path_factory.mktemp("cascade") / request.param)


def plain(pipeline_class: Any, folder: Path, **components: Any) -> Any:
    """Loaded as a reader of the model card would, and without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = pipeline_class.from_pretrained(folder, **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_weights_are_half_precision_and_configs_name_no_folder_of_the_maker(exported: Path) -> None:
    files = list(exported.glob("*/*/*.safetensors"))
    assert len(files) in (3, 5)
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    for file in exported.rglob("*.json"):
        text = file.read_text()
        assert "_name_or_path" not in json.loads(text)
        assert str(exported.parent.parent) not in text
        assert '"float16"' not in text


def test_served_parts_paint_what_the_pipelines_paint(exported: Path) -> None:
    parts = chains.load_parts([exported])
    for settings in (
        {"prompt": "a large red circle", "seed": 3},
        {
            "prompt": "a small blue square",
            "negative_prompt": "red",
            "seed": 4,
            "guidance_scale": 1.0,
        },
    ):
        expected = paint([exported], settings)
        assert expected.std() > 1
        np.testing.assert_array_equal(chains.paint(parts, settings), expected)


def test_stages_and_their_weights_stand_in_the_cascade(exported: Path) -> None:
    stages = read_cascade(exported)
    assert list(stages) == list(stages_of(exported))
    for name, stage in stages.items():
        assert stage.fingerprint == open_checkpoint(exported, stage=name).fingerprint


def test_a_pixel_cascade_is_painted_by_plain_pipelines(runs: Path, tmp_path: Path) -> None:
    folder = export_pixel(runs, tmp_path)
    base = plain(IFPipeline, folder / "base")
    larger = plain(IFSuperResolutionPipeline, folder / "super-resolution")
    assert (base.dtype, larger.dtype) == (torch.float32, torch.float32)
    assert larger.text_encoder is None
    embeds, negative = base.encode_prompt("a large red circle")
    texts = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    small = base(**texts, num_inference_steps=3, output_type="pt").images
    picture = larger(image=small, **texts, num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (32, 32, 3)
    assert np.isfinite(picture).all()


def test_an_unclip_cascade_is_painted_by_plain_pipelines(runs: Path, tmp_path: Path) -> None:
    folder = export_unclip(runs, tmp_path)
    prior = plain(KandinskyV22PriorPipeline, folder / "prior")
    decoder = plain(KandinskyV22Pipeline, folder / "decoder")
    assert (prior.dtype, decoder.dtype) == (torch.float32, torch.float32)
    embeds = prior("a large red circle", num_inference_steps=2)
    images = decoder(**embeds, height=64, width=64, num_inference_steps=2, output_type="np").images
    assert images[0].shape == (64, 64, 3)
    assert np.isfinite(images[0]).all()


def test_a_multistep_solver_keeps_pixels_in_their_range(runs: Path, tmp_path: Path) -> None:
    """As the scheduler that the networks were trained with does by clipping."""
    pipeline = plain(IFPipeline, export_pixel(runs, tmp_path) / "base")
    scheduler = pipeline.scheduler
    assert type(scheduler).__name__ == "DPMSolverMultistepScheduler"
    scheduler.set_timesteps(1)
    sample = torch.full((1, 3, 4, 4), 3.0)
    output = torch.full_like(sample, -5.0)
    assert scheduler.step(output, scheduler.timesteps[0], sample).prev_sample.max() <= 1


def test_defaults_stand_with_the_stage_that_takes_them(runs: Path, tmp_path: Path) -> None:
    pixel, unclip = export_pixel(runs, tmp_path / "a"), export_unclip(runs, tmp_path / "b")
    taken = {
        (stage, argument.name): argument.default
        for folder in (pixel, unclip)
        for part in chains.load_parts([folder])
        for stage in [f"{folder.name}/{part.stage}"]
        for argument in part.arguments
    }
    assert not taken["a/text-encoder", "clean_caption"]
    assert taken["a/generator", "num_inference_steps"] == 4
    assert taken["a/super-res", "num_inference_steps"] == 3
    assert taken["a/super-res", "guidance_scale"] == 1.0
    assert taken["a/super-res", "noise_level"] == 50
    assert taken["b/prior", "num_inference_steps"] == 3
    assert taken["b/prior", "guidance_scale"] == 2.0
    assert (taken["b/generator", "height"], taken["b/generator", "width"]) == (64, 32)
