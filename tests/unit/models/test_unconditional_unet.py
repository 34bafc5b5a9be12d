from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from carrara_models.contracts import Contract, Kind
from carrara_models.denoising.run import run_alone
from carrara_models.errors import BadFieldError, CheckpointError, ContractError
from carrara_models.parts import DenoisingRequest
from families.unconditional import DDIM, DDPM


@pytest.fixture
def ddpm(load: Callable[..., Any]) -> Any:
    return load(DDPM.folders[0], "generator")


@pytest.fixture
def ddim(load: Callable[..., Any]) -> Any:
    return load(DDIM.folders[0], "generator")


def request(**settings: Any) -> DenoisingRequest:
    return DenoisingRequest({}, 1, **{"num_inference_steps": 2} | settings)


def with_unet(tmp_path: Path, **changes: Any) -> Path:
    """A copy of the checkpoint, with a UNet of another config."""
    folder = copytree(DDPM.folders[0], tmp_path / "ddpm")
    config = json.loads((folder / "unet" / "config.json").read_text())
    UNet2DModel.from_config(config | changes).save_pretrained(folder / "unet")
    return folder


def test_it_takes_nothing_and_paints_one_size(ddim: Any) -> None:
    assert ddim.consumes == ()
    assert {"height", "width", "guidance_scale"}.isdisjoint(a.name for a in ddim.arguments)
    sample = run_alone(ddim, request())
    assert sample.tensors["pixels"].shape == (1, 3, 8, 24)
    assert (sample.height, sample.width) == (8, 24)
    with pytest.raises(BadFieldError, match="width"):
        ddim.start(request(width=24))


def test_steps_and_scheduler_are_by_default_those_of_the_pipeline(ddpm: Any, ddim: Any) -> None:
    assert (ddpm.defaults.num_inference_steps, ddpm.defaults.scheduler) == (1000, "ddpm")
    assert (ddim.defaults.num_inference_steps, ddim.defaults.scheduler) == (50, "ddim")


def test_only_ddpm_and_ddim_may_be_chosen_and_both_clip(ddpm: Any) -> None:
    for name in ("ddpm", "ddim"):
        assert ddpm.start(request(scheduler=name)).scheduler.config.clip_sample
    with pytest.raises(BadFieldError, match="ddpm, ddim"):
        ddpm.start(request(scheduler="euler"))


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_beyond_its_range_is_refused(ddim: Any, eta: float) -> None:
    with pytest.raises(BadFieldError, match="eta"):
        ddim.start(request(eta=eta))


def test_a_consumer_of_latents_is_refused(ddpm: Any) -> None:
    with pytest.raises(ContractError, match="latents"):
        ddpm.start(request(consumer=Contract(Kind.LATENTS)))


def test_a_learned_embedding_of_time_looks_timesteps_up(
    tmp_path: Path, load: Callable[..., Any]
) -> None:
    folder = with_unet(tmp_path, time_embedding_type="learned", num_train_timesteps=1000)
    assert torch.isfinite(run_alone(load(folder, "generator"), request()).tensors["pixels"]).all()


@pytest.mark.parametrize(
    "changes", [{"class_embed_type": "identity"}, {"num_class_embeds": 5}, {"out_channels": 6}]
)
def test_a_unet_that_is_no_unconditional_painter_is_refused(
    tmp_path: Path, load: Callable[..., Any], changes: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        load(with_unet(tmp_path, **changes), "generator")
