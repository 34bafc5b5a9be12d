from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from carrara_models.checkpoints import open_checkpoint
from carrara_models.contracts import Contract, Kind
from carrara_models.denoising.run import run_alone
from carrara_models.errors import BadFieldError, CheckpointError, ContractError
from carrara_models.parts import DenoisingRequest, Sample
from carrara_models.pruning import prune
from families.sd_upscale import CASE

DRAWN = torch.Generator().manual_seed(0)
CONDITIONING = {
    name: torch.randn(1, 77, 48, generator=DRAWN)
    for name in ("prompt_embeds", "negative_prompt_embeds")
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copytree(CASE.folders[1], tmp_path / "x4")


@pytest.fixture
def upscaler(load: Callable[..., Any]) -> Any:
    return load(CASE.folders[1], "upscaler")


def picture(height: int = 16, width: int = 16) -> Sample:
    drawn = torch.Generator().manual_seed(1)
    pixels = torch.rand(1, 3, height, width, generator=drawn)
    return Sample({"pixels": pixels}, height=height, width=width)


def request(sample: Sample | None = None, **settings: Any) -> DenoisingRequest:
    return DenoisingRequest(
        CONDITIONING, 1, sample=sample or picture(), **{"num_inference_steps": 2} | settings
    )


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bright_picture_is_noised_as_it_is_before_x_T_is_drawn(upscaler: Any) -> None:
    sample = picture()
    assert sample.tensors["pixels"].min() >= 0, "diffusers would map this to [-1, 1] once more"
    job = upscaler.start(request(sample, noise_level=7))
    drawn = torch.Generator().manual_seed(1)
    noise, x_T = (torch.randn(1, channels, 16, 16, generator=drawn) for channels in (3, 4))
    expected = upscaler.low_res_scheduler.add_noise(
        sample.tensors["pixels"], noise, torch.tensor([7])
    )
    assert torch.equal(job.picture, expected)
    assert torch.equal(job.latents, x_T)
    assert torch.equal(job.torch_generator.get_state(), drawn.get_state())


def test_latents_stand_for_a_picture_four_times_as_large(upscaler: Any) -> None:
    sample = run_alone(upscaler, request(picture(8, 20)))
    assert sample.tensors["latents"].shape == (1, 4, 8, 20)
    assert (sample.height, sample.width) == (32, 80)


@pytest.mark.parametrize(
    ("size", "message"),
    [((16, 18), "multiples of 4"), ((2, 16), "multiples of 4"), ((516, 512), "at most")],
)
def test_a_picture_of_a_size_that_it_cannot_upscale_is_refused(
    upscaler: Any, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        upscaler.start(request(picture(*size)))


def test_the_noise_level_ends_where_the_checkpoint_says(
    folder: Path, upscaler: Any, load: Callable[..., Any]
) -> None:
    upscaler.start(request(noise_level=350))
    for level in (-1, 351):
        with pytest.raises(BadFieldError, match="0 to 350"):
            upscaler.start(request(noise_level=level))
    edit(folder / "model_index.json", max_noise_level=5)
    with pytest.raises(BadFieldError, match="0 to 5"):
        load(folder, "upscaler").start(request(noise_level=6))


def test_the_size_is_the_pictures_and_not_chosen(upscaler: Any) -> None:
    with pytest.raises(BadFieldError, match="height"):
        upscaler.start(request(height=64))
    assert {"height", "width"}.isdisjoint(argument.name for argument in upscaler.arguments)


def test_without_the_vae_the_consumer_says_how_much_larger(
    tmp_path: Path, load: Callable[..., Any]
) -> None:
    checkpoint = open_checkpoint(CASE.folders[1], stage="upscaler")
    alone = load(prune(checkpoint, output=tmp_path / "pruned"), "upscaler")
    with pytest.raises(ContractError, match="not guessed"):
        alone.start(request())
    job = alone.start(request(consumer=Contract(Kind.LATENTS, size_factor=8)))
    assert (job.height, job.width) == (128, 128)


def test_the_scaling_factor_is_mended_as_the_pipeline_does(
    folder: Path, load: Callable[..., Any]
) -> None:
    edit(folder / "vae" / "config.json", scaling_factor=0.18215)
    (port,) = load(folder, "decoder").consumes
    (produced,) = load(folder, "upscaler").produces
    assert port.contract.scaling_factor == produced.scaling_factor == 0.08333


def test_a_unet_that_takes_no_picture_is_refused(folder: Path, load: Callable[..., Any]) -> None:
    with pytest.raises(CheckpointError, match="in_channels"):
        load(_with_unet_of(folder, CASE.folders[0]), "upscaler")


def _with_unet_of(folder: Path, other: Path) -> Path:
    return copytree(other / "unet", folder / "unet", dirs_exist_ok=True).parent
