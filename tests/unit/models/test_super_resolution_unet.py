from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from carrara_models.checkpoints import open_checkpoint
from carrara_models.denoising.run import run_alone
from carrara_models.errors import BadFieldError, CheckpointError, ContractError
from carrara_models.parts import DenoisingRequest, Sample
from families.deepfloyd_if import CASE
from tiny_checkpoints import write_json

DRAWN = torch.Generator().manual_seed(0)
CONDITIONING = {
    name: torch.randn(1, 77, 24, generator=DRAWN)
    for name in ("prompt_embeds", "negative_prompt_embeds")
}


@pytest.fixture
def super_res(load: Callable[..., Any]) -> Any:
    return load(CASE.folders[1], "super-res")


def picture(height: int = 16, width: int = 16) -> Sample:
    drawn = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, height, width, generator=drawn)
    return Sample({"pixels": pixels}, height=height, width=width)


def request(sample: Sample | None, **settings: Any) -> DenoisingRequest:
    return DenoisingRequest(CONDITIONING, 1, sample=sample, **{"num_inference_steps": 2} | settings)


def test_x_T_is_drawn_before_the_noise_of_the_picture(super_res: Any) -> None:
    job = super_res.start(request(picture(), noise_level=999))
    drawn = torch.Generator().manual_seed(1)
    x_T, noise = (torch.randn(1, 3, 32, 32, generator=drawn) for _ in range(2))
    assert torch.equal(job.latents, x_T)
    # At the last timestep next to nothing but noise is left of the picture.
    torch.testing.assert_close(job.picture, noise, rtol=0, atol=0.01)
    assert torch.equal(job.torch_generator.get_state(), drawn.get_state())


def test_any_size_is_brought_to_that_of_the_model(super_res: Any) -> None:
    for size in ((8, 24), (50, 7), (1, 1)):
        sample = run_alone(super_res, request(picture(*size)))
        assert sample.tensors["pixels"].shape == (1, 3, 32, 32)
        assert (sample.height, sample.width) == (32, 32)


@pytest.mark.parametrize("level", [-1, 1000])
def test_a_noise_level_beyond_the_training_timesteps_is_refused(super_res: Any, level: int) -> None:
    with pytest.raises(BadFieldError, match="noise_level") as refusal:
        super_res.start(request(picture(), noise_level=level))
    assert refusal.value.allowed == "0 to 999"


@pytest.mark.parametrize(
    "sample",
    [
        None,
        Sample({"latents": torch.zeros(1, 3, 16, 16)}, 16, 16),
        Sample({"pixels": torch.zeros(1, 4, 16, 16)}, 16, 16),
        Sample({"pixels": torch.zeros(2, 3, 16, 16)}, 16, 16),
        Sample({"pixels": torch.zeros(1, 3, 0, 16)}, 0, 16),
        Sample({"pixels": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}, 16, 16),
        Sample({"pixels": torch.zeros(1, 3, 16, 16)}, 16, 32),
    ],
    ids=["none", "latents", "channels", "two", "empty", "bytes", "other-size"],
)
def test_a_picture_that_does_not_fit_is_refused(super_res: Any, sample: Sample | None) -> None:
    with pytest.raises(ContractError):
        super_res.start(request(sample))


def test_the_checkpoint_may_choose_the_noise_level(
    tmp_path: Path, load: Callable[..., Any]
) -> None:
    (plain,) = _noise_levels(load(CASE.folders[1], "super-res"))
    assert (plain.minimum, plain.maximum, plain.default) == (0, 999, 250)
    folder = copytree(CASE.folders[1], tmp_path / "if")
    for level in (75, 1000):
        defaults = {"super_res_noise_level": level}
        write_json(folder / "carrara.json", {"format": 1, "defaults": defaults, "fingerprints": {}})
        if level > 999:
            with pytest.raises(CheckpointError, match="0 to 999"):
                load(folder, "super-res")
        else:
            (chosen,) = _noise_levels(load(folder, "super-res"))
            assert chosen.default == level


def test_base_and_super_resolution_take_one_text_encoders_embeddings() -> None:
    base, larger = (
        open_checkpoint(folder, stage=stage)
        for folder, stage in zip(CASE.folders, ("generator", "super-res"), strict=True)
    )
    assert base.conditioning_space == larger.conditioning_space != ""


def _noise_levels(part: Any) -> list[Any]:
    return [argument for argument in part.arguments if argument.name == "noise_level"]
