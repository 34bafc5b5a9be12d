"""Jobs that step together take the very steps of diffusers' own schedulers."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.plans.makers import plan_for
from carrara_models.denoising.together import advance_together, guided_together

KNOWN = {
    "DDIMScheduler": [
        {"clip_sample": False},
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        {"clip_sample": True, "clip_sample_range": 1.5},
        {"clip_sample": False, "rescale_betas_zero_snr": True},
    ],
    "EulerDiscreteScheduler": [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"use_karras_sigmas": True},
        {"final_sigmas_type": "sigma_min"},
    ],
    "DPMSolverMultistepScheduler": [
        {},
        {"use_karras_sigmas": True},
        {"euler_at_final": True},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"final_sigmas_type": "sigma_min", "lower_order_final": True},
    ],
    "DDPMScheduler": [
        {"clip_sample": False},
        {"clip_sample": True, "clip_sample_range": 1.5},
        {"variance_type": "fixed_small_log"},
        {"variance_type": "fixed_large"},
    ],
    "PNDMScheduler": [{}, {"set_alpha_to_one": True}, {"steps_offset": 1}],
    "EulerAncestralDiscreteScheduler": [{}, {"timestep_spacing": "leading", "steps_offset": 1}],
    "HeunDiscreteScheduler": [{}, {"use_karras_sigmas": True}, {"clip_sample": True}],
    "LMSDiscreteScheduler": [{}, {"use_karras_sigmas": True}],
    "UniPCMultistepScheduler": [
        {},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"disable_corrector": [0, 3]},
        {"use_karras_sigmas": True},
    ],
    "FlowMatchEulerDiscreteScheduler": [{}, {"shift": 3.0}],
    "FlowMatchHeunDiscreteScheduler": [{}, {"shift": 3.0}],
}
# These know nothing of clean samples as what the network predicts.
WITHOUT_SAMPLE = {"PNDMScheduler", "EulerAncestralDiscreteScheduler"}
SHARED = [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "linear"},
    {"timestep_spacing": "trailing"},
]


DRAWING = {"DDPMScheduler", "EulerAncestralDiscreteScheduler"}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def build(name: str, options: dict[str, Any], num_steps: int) -> Any:
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(num_steps)
    return scheduler


def job_of(
    scheduler: Any, latents: torch.Tensor, scale: float | None = None, *, seed: int = 0
) -> DenoisingJob:
    return DenoisingJob(
        latents=latents,
        inputs={},
        guidance_scale=scale,
        scheduler=scheduler,
        torch_generator=torch.Generator().manual_seed(seed),
        height=8,
        width=8,
    )


@st.composite
def schedulers(draw: st.DrawFn) -> tuple[str, dict[str, Any], int]:
    name = draw(st.sampled_from(sorted(KNOWN)))
    if name.startswith("Flow"):
        # The flow-matching Heun of diffusers divides by 0 in its only step.
        return name, draw(st.sampled_from(KNOWN[name])), draw(st.integers(2, 40))
    options = {**draw(st.sampled_from(SHARED)), **draw(st.sampled_from(KNOWN[name]))}
    predicted = ["epsilon", "v_prediction"]
    if name not in WITHOUT_SAMPLE:
        predicted.append("sample")
    options["prediction_type"] = draw(st.sampled_from(predicted))
    if name == "PNDMScheduler":
        options["skip_prk_steps"] = True
    if options.get("rescale_betas_zero_snr"):  # of pure noise, epsilon tells nothing
        options["prediction_type"] = "v_prediction"
    return name, options, draw(st.integers(1, 40))


@st.composite
def companies(draw: st.DrawFn) -> list[tuple[str, dict[str, Any], int]]:
    """Jobs of which some are of one kind."""
    kinds = draw(st.lists(schedulers(), min_size=1, max_size=2))
    return draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5))


@settings(max_examples=80, deadline=None)
@given(
    kinds=companies(),
    scales=st.lists(st.sampled_from([None, 1.5, 7.5]), min_size=5, max_size=5),
    late=st.lists(st.integers(0, 6), min_size=5, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_jobs_in_company_take_the_steps_of_their_schedulers(kinds, scales, late, seed) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> torch.Tensor:
        return torch.randn(rows, 3, 5, 7, generator=generator)

    jobs, oracles = [], []
    for kind, scale in zip(kinds, scales, strict=False):
        noise = draw(1) * getattr(build(*kind), "init_noise_sigma", 1.0)
        jobs.append(job_of(build(*kind), noise.clone(), scale, seed=len(jobs)))
        oracles.append((build(*kind), noise, torch.Generator().manual_seed(len(oracles))))
        assert jobs[-1].plan is not None
    turn = 0
    while any(job.step < job.num_steps for job in jobs):
        present = [
            index
            for index, job in enumerate(jobs)
            if turn >= late[index] and job.step < job.num_steps
        ]
        outputs = {index: draw(jobs[index].rows) for index in present}
        expected = {}
        for index in present:
            scheduler, x, own = oracles[index]
            timestep, output = scheduler.timesteps[jobs[index].step], outputs[index]
            given_x = torch.cat([x] * jobs[index].rows)
            assert torch.equal(
                torch.cat(jobs[index].network_input()),
                scheduler.scale_model_input(given_x, timestep)
                if hasattr(scheduler, "scale_model_input")
                else given_x,
            )
            if scales[index] is not None:
                negative, positive = output.chunk(2)
                output = negative + scales[index] * (positive - negative)
            draws = {"generator": own} if type(scheduler).__name__ in DRAWING else {}
            expected[index] = scheduler.step(output, timestep, x, **draws, return_dict=False)[0]
            oracles[index] = (scheduler, expected[index], own)
        members = [jobs[index] for index in present]
        guided = guided_together(members, [outputs[index] for index in present])
        assert not any(advance_together(members, guided))
        for index in present:
            assert same_bits(jobs[index].latents, expected[index]), kinds[index]
        turn += 1
    for job, (_, _, own) in zip(jobs, oracles, strict=True):
        assert torch.equal(job.torch_generator.get_state(), own.get_state())


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_job_may_begin_as_another_ends(name: str) -> None:
    def output(step: int) -> torch.Tensor:
        return torch.full((1, 1, 2, 2), 0.1 * step)

    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    alone, early, late = (job_of(build(name, options, 4), torch.ones(1, 1, 2, 2)) for _ in range(3))
    while alone.step < alone.num_steps:
        assert advance_together([alone], [output(alone.step)]) == [None]
    overlap = early.num_steps - 1
    for members in ([early],) * overlap + ([early, late],) + ([late],) * overlap:
        outputs = [output(job.step) for job in members]
        assert not any(advance_together(members, outputs))
    assert torch.equal(early.latents, alone.latents)
    assert torch.equal(late.latents, alone.latents)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PNDMScheduler", {}),
        ("UniPCMultistepScheduler", {"solver_order": 3}),
        ("UniPCMultistepScheduler", {"predict_x0": False}),
        ("UniPCMultistepScheduler", {"thresholding": True}),
        ("DDPMScheduler", {"thresholding": True}),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
        ("DDIMScheduler", {"thresholding": True}),
        ("DPMSolverMultistepScheduler", {"thresholding": True}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    ],
)
def test_what_is_not_known_steps_by_itself(name: str, options: dict[str, Any]) -> None:
    assert plan_for(build(name, options, 10)) is None
    one, other = (job_of(build(name, options, 10), torch.ones(1, 3, 4, 4)) for _ in range(2))
    output = torch.full((1, 3, 4, 4), 0.5)
    assert advance_together([one, other], [output, output]) == [None, None]
    assert torch.equal(one.latents, other.latents)
    assert one.step == other.step == 1


def test_jobs_of_equal_settings_share_a_plan() -> None:
    plans = [plan_for(build("DDIMScheduler", {}, steps)) for steps in (10, 10, 11)]
    assert plans[0] is plans[1]
    assert plans[0] is not plans[2]
    other = plan_for(build("DDIMScheduler", {"prediction_type": "sample"}, 10))
    assert other is not plans[0]


def test_what_is_no_number_is_that_job_s_alone() -> None:
    good, bad = (job_of(build("DDIMScheduler", {}, 4), torch.ones(1, 1, 2, 2)) for _ in range(2))
    errors = advance_together(
        [bad, good], [torch.full((1, 1, 2, 2), torch.nan), torch.ones(1, 1, 2, 2)]
    )
    assert errors[1] is None
    assert "latents after step 1" in str(errors[0])
