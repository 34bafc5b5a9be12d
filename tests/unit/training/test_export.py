import json
import warnings

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from carrara_models.denoising.schedulers import SCHEDULERS
from carrara_models.training.export import DefaultSettings, export_checkpoint


@pytest.fixture(scope="module")
def checkpoint(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    export_checkpoint(
        folder,
        text_encoder_folder=runs.of("text-encoder"),
        autoencoder_folder=runs.of("autoencoder"),
        generator_folder=runs.of("latents"),
        defaults=DefaultSettings(num_inference_steps=4, height=16, width=16),
    )
    return folder


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return StableDiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)


def test_the_plain_pipeline_loads_it_without_a_safety_checker(pipeline):
    assert pipeline.safety_checker is None
    assert pipeline.feature_extractor is None
    assert not pipeline.config.requires_safety_checker
    assert pipeline.vae_scale_factor == 2


def test_the_plain_pipeline_paints_without_being_told_a_dtype(checkpoint):
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a big red disc on white", num_inference_steps=1, output_type="np").images[0]
    assert np.isfinite(image).all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_paints_with_every_scheduler(name, pipeline):
    class_name, overrides = SCHEDULERS[name]
    scheduler_class = getattr(diffusers, class_name)
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **overrides)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a big red disc on white",
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    assert image.shape == (16, 16, 3)
    assert np.isfinite(image).all()


def test_weights_are_half_precision_and_configs_name_no_folder_of_the_maker(checkpoint):
    for file in checkpoint.glob("*/*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    configs = list(checkpoint.glob("*/config.json"))
    assert len(configs) == 3
    for config in configs:
        assert "_name_or_path" not in json.loads(config.read_text())


def test_defaults_are_written_beside_it(checkpoint):
    assert json.loads((checkpoint / "carrara.json").read_text()) == {
        "format": 1,
        "defaults": {"num_inference_steps": 4, "guidance_scale": 2.5, "height": 16, "width": 16},
    }
