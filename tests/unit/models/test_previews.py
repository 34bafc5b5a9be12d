"""Previews: x_0 as the schedulers themselves have it, small pictures, and the projection's file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from carrara_models.checkpoints import Checkpoint, open_checkpoint
from carrara_models.contracts import Contract, Kind, TensorSpec
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.originals import original_of
from carrara_models.denoising.previews import preview_of_latents, preview_of_pixels
from carrara_models.denoising.schedulers import FLOW_SCHEDULERS, SCHEDULERS
from carrara_models.errors import CheckpointError
from carrara_models.limits import MAX_PREVIEW_SIDE
from carrara_models.pruning import prune
from carrara_models.rgb_projection import RgbProjection

SHAPE = (1, 4, 6, 5)
MORE = {
    "unclip": ("UnCLIPScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "singlestep": ("DPMSolverSinglestepScheduler", {}),
    "dpm++2m-flow": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    ),
}
ALL = {**SCHEDULERS, **FLOW_SCHEDULERS, **MORE}


def job_of(scheduler: Any, latents: torch.Tensor, **more: Any) -> DenoisingJob:
    return DenoisingJob(
        latents=latents,
        inputs={},
        scheduler=scheduler,
        torch_generator=torch.Generator().manual_seed(0),
        height=8,
        width=8,
        **{"guidance_scale": None, **more},
    )


def scheduler_of(name: str, prediction_type: str, *, steps: int = 6) -> Any:
    class_name, options = ALL[name]
    if "prediction_type" not in options and "Flow" not in class_name:
        options = {**options, "prediction_type": prediction_type}
    scheduler = getattr(diffusers, class_name)(**options)
    scheduler.set_timesteps(steps)
    return scheduler


def cases() -> list[tuple[str, str]]:
    types = ("epsilon", "sample", "v_prediction")
    without_v = {"unclip"}
    return [
        (name, each)
        for name in ALL
        for each in (types if "flow" not in name else ("flow_prediction",))
        if not (name in without_v and each == "v_prediction")
        and not (name in ("pndm", "euler-ancestral") and each == "sample")
    ]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "prediction_type"), cases())
def test_a_perfect_network_s_x_0_is_the_one_that_noise_was_added_to(
    name: str, prediction_type: str
) -> None:
    original, noise = random(*SHAPE, seed=0), random(*SHAPE, seed=1)
    scheduler = scheduler_of(name, prediction_type)
    job = job_of(scheduler, original)
    first = 1 if name == "unclip" else 0  # of x_0 nothing at all is left in its first x_t
    for step in (first, 2, 3, job.num_steps - 1):
        timestep = scheduler.timesteps[step : step + 1]
        if "flow" in name:
            sigma = float(scheduler.sigmas[step])
            noisy, output = (1 - sigma) * original + sigma * noise, noise - original
        else:
            # DDPM's own words: all others start from its betas.
            words = diffusers.DDPMScheduler(beta_schedule=_betas(scheduler))
            if hasattr(scheduler, "sigmas") and not hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
                sigma = float(scheduler.sigmas[step])
                kept, noisy = 1 / (1 + sigma**2), original + sigma * noise
            elif hasattr(scheduler, "sigmas"):
                kept = 1 / (1 + float(scheduler.sigmas[step]) ** 2)
                noisy = kept**0.5 * original + (1 - kept) ** 0.5 * noise
            else:
                kept = float(words.alphas_cumprod[timestep])
                noisy = words.add_noise(original, noise, timestep)
            velocity = kept**0.5 * noise - (1 - kept) ** 0.5 * original
            output = {"epsilon": noise, "sample": original, "v_prediction": velocity}[
                prediction_type
            ]
        job.latents, job.step = noisy, step
        # Early on little of x_0 is left in x_t, and float32 rounds the rest.
        torch.testing.assert_close(original_of(job, output), original, rtol=0, atol=2e-3)


def _betas(scheduler: Any) -> str:
    return scheduler.config.get("beta_schedule", "squaredcos_cap_v2")


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "dpm++2m", "unipc"])
def test_x_0_is_what_the_scheduler_takes_it_for(name: str, prediction_type: str) -> None:
    """Of an imperfect network too, in the middle of its steps."""
    class_name, options = ALL[name]
    options = {**options, "prediction_type": prediction_type}
    scheduler = getattr(diffusers, class_name)(**options)
    scheduler.set_timesteps(5)
    job = job_of(scheduler, random(*SHAPE, seed=2) * scheduler.init_noise_sigma)
    for step, timestep in enumerate(scheduler.timesteps):
        job.step = step
        output = random(*SHAPE, seed=10 + step)
        scheduler.scale_model_input(job.latents, timestep)
        mine = original_of(job, output)
        made = scheduler.step(output, timestep, job.latents)
        theirs = getattr(made, "pred_original_sample", None)
        if theirs is None:  # solvers that keep what they have converted
            theirs = scheduler.model_outputs[-1]
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        job.latents = made.prev_sample


def test_guidance_is_applied_and_a_variance_left_out() -> None:
    job = job_of(scheduler_of("ddim", "sample"), random(*SHAPE, seed=0), guidance_scale=3.0)
    negative, positive, variance = (random(*SHAPE, seed=seed) for seed in (1, 2, 3))
    both = torch.cat([torch.cat([half, variance], dim=1) for half in (negative, positive)])
    expected = negative + 3.0 * (positive - negative)
    assert torch.equal(original_of(job, both), expected)


def test_looking_changes_nothing() -> None:
    job = job_of(scheduler_of("euler", "epsilon"), random(1, 3, 8, 8, seed=0))
    output = random(1, 3, 8, 8, seed=1)
    before = (job.latents.clone(), output.clone(), job.torch_generator.get_state())
    preview_of_pixels(job, output)
    after = (job.latents, output, job.torch_generator.get_state())
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert job.step == 0
    assert job.history == ()


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [(32, 48, (32, 48)), (128, 128, (128, 128)), (512, 256, (128, 64)), (8, 2048, (1, 128))],
)
def test_a_preview_is_never_larger_than_may_be_sent(
    height: int, width: int, shown: tuple[int, int]
) -> None:
    pixels = random(1, 3, height, width, seed=0)
    job = job_of(scheduler_of("ddim", "sample"), pixels)
    picture = preview_of_pixels(job, pixels)
    assert picture.shape == (*shown, 3)
    assert picture.dtype == torch.uint8
    assert picture.numel() <= 48 * 1024 == MAX_PREVIEW_SIDE**2 * 3


def test_pixels_are_scaled_down_by_their_mean_and_clipped() -> None:
    pixels = torch.full((1, 3, 256, 256), -0.5)
    pixels[..., ::2] = 0.5
    pixels[:, 0] = 7.0
    pixels[:, 2] = float("nan")
    job = job_of(scheduler_of("ddim", "sample"), pixels)
    picture = preview_of_pixels(job, pixels)
    assert picture.reshape(-1, 3).unique(dim=0).tolist() == [[255, 128, 128]]


def test_a_scheduler_that_thresholds_bounds_the_picture_too() -> None:
    pixels = torch.linspace(-4, 4, 3 * 64).reshape(1, 3, 8, 8)
    plain, bounded = (
        diffusers.DDPMScheduler(
            prediction_type="sample", thresholding=thresholding, sample_max_value=10
        )
        for thresholding in (False, True)
    )
    shown = []
    for scheduler in (plain, bounded):
        scheduler.set_timesteps(2)
        shown.append(preview_of_pixels(job_of(scheduler, pixels), pixels))
    assert len(shown[0].unique()) < len(shown[1].unique())


def latents_of(channels: int, *, space: str = "") -> Contract:
    return Contract(
        kind=Kind.LATENTS, space=space, tensors=(TensorSpec("latents", (1, channels, 0, 0)),)
    )


def projecting(checkpoint: Checkpoint, *, channels: int = 2, space: str = "") -> Checkpoint:
    numbers = random(2 * channels + 1, channels + 1, 3, seed=5).tolist()
    weights = tuple(tuple(tuple(colours) for colours in row) for row in numbers)
    return replace(checkpoint, rgb_projection=RgbProjection(weights, space))


def test_latents_are_projected_by_what_the_whole_picture_is_like(sd1: Path) -> None:
    checkpoint = projecting(open_checkpoint(sd1, stage="generator"))
    preview = preview_of_latents(checkpoint, latents_of(2), device=torch.device("cpu"))
    latents = random(1, 2, 3, 4, seed=0)
    job = job_of(scheduler_of("ddim", "sample"), latents)
    means = [*latents[0].mean(dim=(1, 2)).tolist(), 1.0]
    table = np.array(checkpoint.rgb_projection.weights)
    for y in range(3):
        for x in range(4):
            inputs = [*latents[0, :, y, x].tolist(), *means]
            colour = sum(
                table[a, b] * inputs[a] * means[b]
                for a in range(len(inputs))
                for b in range(len(means))
            )
            expected = np.clip(colour * 127.5 + 127.5, 0, 255)
            np.testing.assert_allclose(preview(job, latents)[y, x], expected, atol=0.51)


def test_without_a_projection_latents_are_not_shown(sd1: Path, load: Callable[..., Any]) -> None:
    assert load(sd1, "generator").preview is None
    assert load(sd1, "decoder").preview is None


def test_a_projection_of_other_latents_is_refused(sd1: Path) -> None:
    checkpoint = projecting(open_checkpoint(sd1, stage="generator"), space="a" * 64)
    for produced in (latents_of(4), latents_of(2, space="b" * 64)):
        with pytest.raises(CheckpointError, match="carrara train previews"):
            preview_of_latents(checkpoint, produced, device=torch.device("cpu"))
    # A folder that does not know its autoencoder takes the projection at its word.
    assert preview_of_latents(checkpoint, latents_of(2), device=torch.device("cpu")) is not None


COLOUR = [0.5, 0, -1]


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {"space": "", "weights": []},
        {"space": "", "weights": [[COLOUR, COLOUR]] * 2},
        {"space": "", "weights": [[COLOUR]] * 3},
        {"space": "", "weights": [[COLOUR, [1, 2]]] * 3},
        {"space": "", "weights": [[COLOUR, [1, 2, float("inf")]]] * 3},
        {"space": "", "weights": [[COLOUR, ["red", 2, 3]]] * 3},
        {"weights": [[COLOUR, COLOUR]] * 3},
        {"space": None, "weights": 7},
    ],
)
def test_what_is_no_projection_is_refused(sd1: Path, entry: object) -> None:
    (sd1 / "carrara.json").write_text(json.dumps({"format": 1, "rgb_projection": entry}))
    with pytest.raises(CheckpointError, match=r"carrara\.json: rgb_projection is not"):
        open_checkpoint(sd1, stage="generator")


def test_a_pruned_generator_keeps_its_projection(sd1: Path, tmp_path: Path) -> None:
    weights = [[COLOUR] * 5] * 9
    entry = {"space": "", "weights": weights}
    (sd1 / "carrara.json").write_text(json.dumps({"format": 1, "rgb_projection": entry}))
    whole = open_checkpoint(sd1, stage="generator")
    pruned = open_checkpoint(prune(whole, output=tmp_path / "pruned"), stage="generator")
    assert pruned.rgb_projection == whole.rgb_projection is not None
    assert not (tmp_path / "pruned" / "vae").exists()
    # A colour to a line.
    assert "        [0.5, 0.0, -1.0],\n" in (tmp_path / "pruned" / "carrara.json").read_text()
