from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from carrara_models.checkpoints import open_checkpoint
from carrara_models.contracts import Contract, Kind, TensorSpec
from carrara_models.denoising.run import advance_alone, run_alone
from carrara_models.errors import BadFieldError, ContractError, NumericalError
from carrara_models.limits import MAX_PIXELS
from carrara_models.parts import DenoisingRequest
from carrara_models.pruning import prune

VAE = Contract(
    kind=Kind.LATENTS,
    tensors=(TensorSpec("latents", (1, 4, 0, 0)),),
    size_factor=8,
    scaling_factor=0.18215,
)


@pytest.fixture
def generator(sd1: Path, load: Callable[..., Any]) -> Any:
    return load(sd1, "generator")


@pytest.fixture
def pruned_generator(sd1: Path, tmp_path: Path, load: Callable[..., Any]) -> Any:
    return load(prune(open_checkpoint(sd1, stage="generator"), output=tmp_path / "p"), "generator")


def request(*, seed: int | torch.Tensor = 1, guidance: bool = True, **settings: Any) -> Any:
    drawn = torch.Generator().manual_seed(0)
    names = ["prompt_embeds", "negative_prompt_embeds"][: 2 if guidance else 1]
    conditioning = {name: torch.randn(1, 77, 32, generator=drawn) for name in names}
    return DenoisingRequest(conditioning, seed, **{"num_inference_steps": 2} | settings)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("num_inference_steps", 0, "1 to 1000"),
        ("num_inference_steps", 1001, "1 to 1000"),
        ("guidance_scale", float("nan"), "0 to 30"),
        ("guidance_scale", float("inf"), "0 to 30"),
        ("guidance_scale", -0.1, "0 to 30"),
        ("guidance_scale", 30.1, "0 to 30"),
        ("height", 60, "a multiple of 8"),
        ("height", 0, "a multiple of 8"),
        ("width", -8, "a multiple of 8"),
        ("width", 2**31, "a multiple of 8"),
        ("scheduler", "ddmp", "ddpm, ddim"),
        ("seed", -1, "0 to 18446744073709551615"),
        ("seed", 2**64, "0 to 18446744073709551615"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_the_range(
    generator: Any, field: str, value: Any, allowed: str
) -> None:
    with pytest.raises(BadFieldError) as refusal:
        generator.start(request(**{field: value}))
    assert refusal.value.field == field
    assert allowed in refusal.value.allowed


def test_too_many_pixels_are_refused_where_the_sides_alone_would_do(generator: Any) -> None:
    generator.start(request(height=2048, width=2048))
    with pytest.raises(BadFieldError, match=f"{MAX_PIXELS} pixels in all") as refusal:
        generator.start(request(height=2048, width=2056))
    assert refusal.value.field == "width"


@pytest.mark.parametrize(
    "state",
    [
        torch.zeros(5056, dtype=torch.uint8),
        torch.zeros(5055, dtype=torch.uint8),
        torch.zeros(5056),
        torch.full((5056,), 255, dtype=torch.uint8),
    ],
    ids=["zeros", "short", "float", "ones"],
)
def test_a_random_state_that_is_none_is_refused(generator: Any, state: torch.Tensor) -> None:
    with pytest.raises(BadFieldError, match="random_state"):
        generator.start(request(seed=state))


def test_a_random_state_goes_on_where_the_seed_would(generator: Any) -> None:
    state = torch.Generator().manual_seed(2**64 - 5).get_state()
    by_seed, by_state = (
        run_alone(generator, request(seed=seed, scheduler="ddpm")) for seed in (2**64 - 5, state)
    )
    assert torch.equal(by_seed.tensors["latents"], by_state.tensors["latents"])
    assert torch.equal(by_seed.random_state, by_state.random_state)
    assert not torch.equal(by_seed.random_state, state)


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [
        ({}, "has no prompt_embeds"),
        ({"prompt_embeds": torch.zeros(1, 77, 48)}, r"\[1, 77, 48\].*\[1, any, 32\]"),
        ({"prompt_embeds": torch.zeros(2, 77, 32)}, r"takes \[1, any, 32\]"),
        ({"prompt_embeds": torch.zeros(1, 0, 32)}, r"takes \[1, any, 32\]"),
        ({"prompt_embeds": torch.zeros(1, 77, 32, dtype=torch.int64)}, "real numbers"),
        (
            {
                "prompt_embeds": torch.zeros(1, 77, 32),
                "negative_prompt_embeds": torch.zeros(1, 76, 32),
            },
            "negative_prompt_embeds",
        ),
    ],
)
def test_conditioning_that_does_not_fit_is_refused(
    generator: Any, conditioning: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        generator.start(DenoisingRequest(conditioning, 1))


def test_guidance_without_a_negative_half_is_refused_only_when_asked_for(generator: Any) -> None:
    with pytest.raises(ContractError, match="guidance_scale is 5"):
        generator.start(request(guidance=False, guidance_scale=5.0))
    assert generator.start(request(guidance=False)).rows == 1
    assert generator.start(request(guidance_scale=1.0)).rows == 1
    assert generator.start(request(guidance_scale=1.1)).rows == 2


def test_a_generator_without_the_vae_learns_the_size_from_its_consumer(
    pruned_generator: Any,
) -> None:
    (produced,) = pruned_generator.produces
    assert (produced.size_factor, produced.scaling_factor) == (0, 0.0)
    assert produced.space != ""
    job = pruned_generator.start(request(consumer=VAE))
    assert tuple(job.latents.shape) == (1, 4, 8, 8)
    assert (job.height, job.width) == (64, 64)
    job = pruned_generator.start(request(consumer=replace(VAE, size_factor=4)))
    assert (job.height, job.width) == (32, 32)
    with pytest.raises(ContractError, match="not guessed"):
        pruned_generator.start(request())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_factor": 4}, "size factor is 8, its consumer's 4"),
        ({"kind": Kind.PIXELS}, "takes pixels"),
        ({"tensors": (TensorSpec("latents", (1, 16, 0, 0)),)}, r"\[1, 16, 0, 0\]"),
    ],
)
def test_a_consumer_of_other_structure_is_refused(
    generator: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        generator.start(request(consumer=replace(VAE, **changes)))


def test_sizes_are_multiples_of_a_larger_size_factor(pruned_generator: Any) -> None:
    consumer = replace(VAE, size_factor=16)
    with pytest.raises(BadFieldError, match="a multiple of 16"):
        pruned_generator.start(request(consumer=consumer, height=24))


@pytest.mark.parametrize(
    ("scheduler", "calls"), [("pndm", 6), ("heun", 9), ("ddim", 5), ("dpm++2m", 5)]
)
def test_steps_count_the_networks_calls(generator: Any, scheduler: str, calls: int) -> None:
    job = generator.start(request(scheduler=scheduler, num_inference_steps=5))
    assert (job.step, job.num_steps) == (0, calls)
    advance_alone(generator, job, *generator.predict([job]))
    assert job.step == 1


def test_not_a_number_stops_the_job_with_the_step(generator: Any) -> None:
    job = generator.start(request(num_inference_steps=4))
    advance_alone(generator, job, *generator.predict([job]))
    with pytest.raises(NumericalError, match="latents after step 2"):
        advance_alone(generator, job, torch.full((2, 4, 8, 8), torch.nan))


def test_not_a_number_in_one_job_leaves_its_neighbour_as_it_was(generator: Any) -> None:
    alone = run_alone(generator, request(num_inference_steps=3))
    good, bad = generator.start(request(num_inference_steps=3)), generator.start(request(seed=2))
    bad.latents.fill_(torch.nan)
    outputs = generator.predict([bad, good])
    with pytest.raises(NumericalError):
        advance_alone(generator, bad, outputs[0])
    advance_alone(generator, good, outputs[1])
    while good.step < good.num_steps:
        advance_alone(generator, good, *generator.predict([good]))
    assert torch.equal(generator.finish(good).tensors["latents"], alone.tensors["latents"])


def test_an_unfinished_job_has_no_sample(generator: Any) -> None:
    with pytest.raises(RuntimeError, match="step 0 of 2"):
        generator.finish(generator.start(request(scheduler="ddim")))


def test_a_height_without_a_width_is_taken_as_said(sd1: Path, load: Callable[..., Any]) -> None:
    """`StableDiffusionPipeline` drops both and paints its default size."""
    job = load(sd1, "generator").start(request(height=48))
    assert (job.height, job.width) == (48, 64)
    assert job.latents.shape[2:] == (6, 8)
