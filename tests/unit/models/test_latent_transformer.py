from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel

from carrara_models.checkpoints import open_checkpoint
from carrara_models.contracts import Contract, Kind, TensorSpec
from carrara_models.errors import BadFieldError, CheckpointError, ContractError, NumericalError
from carrara_models.parts import DenoisingRequest
from carrara_models.pruning import prune
from families import sd3

VAE = Contract(kind=Kind.LATENTS, tensors=(TensorSpec("latents", (1, 4, 0, 0)),), size_factor=4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[Any], Path]:
    """Copies a case's checkpoint, to be changed."""
    return lambda case: Path(shutil.copytree(case.folders[0], tmp_path / case.name))


def sd3_request(*, negative: bool = True, **settings: Any) -> DenoisingRequest:
    drawn = torch.Generator().manual_seed(0)
    shapes = {"prompt_embeds": (1, 90, 96), "pooled_prompt_embeds": (1, 80)}
    conditioning = {
        prefix + name: torch.randn(shape, generator=drawn)
        for prefix in ("", "negative_")[: 2 if negative else 1]
        for name, shape in shapes.items()
    }
    return DenoisingRequest(conditioning, 1, **{"num_inference_steps": 2} | settings)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("height", 44, "a multiple of 8"),
        ("width", 136, "at most 128"),
        ("scheduler", "euler", "one of flow-euler, flow-heun"),
        ("guidance_scale", -1.0, "0 to 30"),
        ("use_resolution_binning", True, "no bins"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_the_range(
    load: Callable[..., Any], field: str, value: Any, allowed: str
) -> None:
    generator = load(sd3.CASE.folders[0], "generator")
    with pytest.raises(BadFieldError) as refusal:
        generator.start(sd3_request(**{field: value}))
    assert refusal.value.field == field
    assert allowed in refusal.value.allowed


def test_pooled_embeddings_that_are_missing_are_refused(load: Callable[..., Any]) -> None:
    generator = load(sd3.CASE.folders[0], "generator")
    with pytest.raises(ContractError, match="has no pooled_prompt_embeds"):
        generator.start(DenoisingRequest({"prompt_embeds": torch.zeros(1, 90, 96)}, 1))


def test_a_shift_by_size_leaves_no_choice_of_heun(load: Callable[..., Any]) -> None:
    by_size = load(sd3.WITHOUT_T5.folders[0], "generator")
    assert by_size.samplers.names == ("flow-euler",)
    with pytest.raises(BadFieldError, match="flow-heun"):
        by_size.start(sd3_request(scheduler="flow-heun"))
    small, large = (
        by_size.start(sd3_request(height=size, width=size)).scheduler.sigmas for size in (16, 64)
    )
    assert large[1] > small[1]


def test_heun_calls_the_network_twice_per_step_but_the_last(load: Callable[..., Any]) -> None:
    generator = load(sd3.CASE.folders[0], "generator")
    job = generator.start(sd3_request(scheduler="flow-heun", num_inference_steps=4))
    assert (job.num_steps, job.rows) == (7, 2)


def test_without_the_vae_the_consumer_says_the_size(
    load: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(sd3.CASE.folders[0], stage="generator")
    generator = load(prune(checkpoint, output=tmp_path / "pruned"), "generator")
    job = generator.start(sd3_request(consumer=VAE))
    assert (job.height, job.width, tuple(job.latents.shape)) == (64, 64, (1, 4, 16, 16))
    with pytest.raises(BadFieldError, match="a multiple of 16"):
        generator.start(sd3_request(consumer=replace(VAE, size_factor=8), height=40))
    with pytest.raises(ContractError, match="not guessed"):
        generator.start(sd3_request())


def test_not_a_number_stops_the_job_with_the_step(load: Callable[..., Any]) -> None:
    generator = load(sd3.CASE.folders[0], "generator")
    job = generator.start(sd3_request())
    generator.advance(job, *generator.predict([job]))
    with pytest.raises(NumericalError, match="latents after step 2"):
        generator.advance(job, torch.full((2, 4, 16, 16), torch.nan))


def test_a_transformer_that_makes_other_channels_is_refused(
    checkpoint: Callable[[Any], Path], load: Callable[..., Any]
) -> None:
    folder = checkpoint(sd3.CASE)
    config = SD3Transformer2DModel.load_config(folder / "transformer")
    config["out_channels"] = 8
    SD3Transformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    with pytest.raises(CheckpointError, match="out_channels"):
        load(folder, "generator")
