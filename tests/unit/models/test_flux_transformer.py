from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from carrara_models.denoising.run import advance_alone, run_alone
from carrara_models.errors import BadFieldError, CheckpointError, ContractError, NumericalError
from carrara_models.parts import DenoisingRequest
from families import flux

DEV, SCHNELL = flux.CASE, flux.SCHNELL


def request(*, negative: bool = False, **settings: Any) -> DenoisingRequest:
    drawn = torch.Generator().manual_seed(0)
    shapes = {"prompt_embeds": (1, 10, flux.T5_WIDTH), "pooled_prompt_embeds": (1, flux.CLIP_WIDTH)}
    conditioning = {
        prefix + name: torch.randn(shape, generator=drawn)
        for prefix in ("", "negative_")[: 2 if negative else 1]
        for name, shape in shapes.items()
    }
    defaults = {"num_inference_steps": 2, "height": 32, "width": 48}
    return DenoisingRequest(conditioning, 1, **defaults | settings)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("height", 36, "a multiple of 8"),
        ("scheduler", "flow-heun", "one of flow-euler"),
        ("guidance_scale", 31.0, "0 to 30"),
        ("true_cfg_scale", float("nan"), "0 to 30"),
        ("true_cfg_scale", 31.0, "0 to 30"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_the_range(
    load: Callable[..., Any], field: str, value: Any, allowed: str
) -> None:
    generator = load(DEV.folders[0], "generator")
    with pytest.raises(BadFieldError) as refusal:
        generator.start(request(negative=True, **{field: value}))
    assert refusal.value.field == field
    assert allowed in refusal.value.allowed


def test_true_guidance_needs_a_negative_half_and_the_plain_one_does_not(
    load: Callable[..., Any],
) -> None:
    generator = load(DEV.folders[0], "generator")
    with pytest.raises(ContractError, match="true_cfg_scale is 4"):
        generator.start(request(true_cfg_scale=4.0))
    for wanted, rows in (
        (request(guidance_scale=9.0), 1),
        (request(negative=True), 1),
        (request(negative=True, true_cfg_scale=4.0), 2),
    ):
        assert generator.rows(wanted) == generator.start(wanted).rows == rows


def test_guidance_is_an_input_only_of_networks_that_were_distilled_for_it(
    load: Callable[..., Any],
) -> None:
    dev, schnell = load(DEV.folders[0], "generator"), load(SCHNELL.folders[0], "generator")
    assert "guidance_scale" in {argument.name for argument in dev.arguments}
    assert "guidance_scale" not in {argument.name for argument in schnell.arguments}
    mild, strong = (run_alone(dev, request(guidance_scale=s)).tensors["latents"] for s in (1, 9))
    assert not torch.equal(mild, strong)
    assert "guidance" not in schnell.start(request()).inputs


def test_latents_are_handed_on_unpacked(load: Callable[..., Any]) -> None:
    sample = run_alone(load(DEV.folders[0], "generator"), request())
    assert tuple(sample.tensors["latents"].shape) == (1, 4, 8, 12)
    assert (sample.height, sample.width) == (32, 48)


def test_pictures_of_equally_many_tokens_but_other_shape_share_no_batch(
    load: Callable[..., Any],
) -> None:
    generator = load(DEV.folders[0], "generator")
    wide, high = (
        generator.start(request(height=h, width=w)).group for h, w in ((32, 48), (48, 32))
    )
    assert wide != high


def test_not_a_number_stops_the_job_with_the_step(load: Callable[..., Any]) -> None:
    generator = load(DEV.folders[0], "generator")
    job = generator.start(request())
    with pytest.raises(NumericalError, match="latents after step 1"):
        advance_alone(generator, job, torch.full((1, 4, 8, 12), torch.nan))


def test_a_transformer_that_sees_a_picture_beside_the_noise_is_refused(
    load: Callable[..., Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(DEV.folders[0], tmp_path / "flux"))
    config = FluxTransformer2DModel.load_config(folder / "transformer")
    config |= {"in_channels": 32, "out_channels": 16}
    FluxTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    with pytest.raises(CheckpointError, match="takes 32 channels and makes 16"):
        load(folder, "generator")
