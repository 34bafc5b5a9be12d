"""A job that was cut off and goes on elsewhere makes the very sample of one that was not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.portable import KEPT
from carrara_models.denoising.together import advance_together
from carrara_models.errors import JobStateError

SHAPE = (1, 3, 4, 5)
NUM_STEPS = 7
PLANNED: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {}),
    ("DDPMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("EulerDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchHeunDiscreteScheduler", {}),
]
BY_ITSELF: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {"thresholding": True}),
    ("DEISMultistepScheduler", {}),
    ("PNDMScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("UnCLIPScheduler", {}),
]


def start(
    name: str, options: dict[str, Any], *, eta: float = 0.0, dtype: torch.dtype = torch.float32
) -> DenoisingJob:
    """As a denoiser starts a request: every time alike."""
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(NUM_STEPS)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(SHAPE, generator=generator, dtype=dtype)
    return DenoisingJob(
        latents=noise * getattr(scheduler, "init_noise_sigma", 1.0),
        inputs={},
        guidance_scale=None,
        scheduler=scheduler,
        torch_generator=generator,
        height=4,
        width=5,
        eta=eta,
    )


def step(job: DenoisingJob) -> None:
    seen = job.latents
    if hasattr(job.scheduler, "scale_model_input"):
        (seen,) = job.network_input()
    assert advance_together([job], [0.7 * seen.roll(1, -1)]) == [None]


def finish(job: DenoisingJob) -> torch.Tensor:
    while job.step < job.num_steps:
        step(job)
    return job.latents


def check_every_cut(**how: Any) -> None:
    expected = finish(start(**how))
    for cut in range(start(**how).num_steps):
        job = start(**how)
        for _ in range(cut):
            step(job)
        state = job.state()
        assert state is not None
        resumed = start(**how)
        resumed.resume(state)
        assert resumed.step == cut
        assert torch.equal(finish(resumed), expected), cut
        assert torch.equal(finish(job), expected)  # taking it down has changed nothing


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize(("name", "options"), PLANNED + BY_ITSELF)
def test_a_job_cut_at_any_step_goes_on_with_the_same_bits(
    name: str, options: dict[str, Any]
) -> None:
    assert (start(name, options).plan is not None) == ((name, options) in PLANNED)
    check_every_cut(name=name, options=options)


@pytest.mark.parametrize(("name", "options"), PLANNED)
def test_in_half_precision_too_where_schedulers_step_by_themselves(
    name: str, options: dict[str, Any]
) -> None:
    assert start(name, options, dtype=torch.bfloat16).plan is None
    check_every_cut(name=name, options=options, dtype=torch.bfloat16)


def test_fresh_noise_goes_on_where_it_was() -> None:
    check_every_cut(name="DDIMScheduler", options={}, eta=1.0)


def test_every_scheduler_that_can_be_chosen_is_portable() -> None:
    assert {name for name, _ in PLANNED + BY_ITSELF} == set(KEPT)


def test_a_scheduler_that_is_not_known_gives_no_state() -> None:
    job = start("DPMSolverSinglestepScheduler", {})
    assert job.state() is None
    with pytest.raises(JobStateError, match="DPMSolverSinglestepScheduler cannot be resumed"):
        job.resume(start("DDIMScheduler", {}).state())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("by_itself", [False, True])
def test_what_does_not_fit_is_refused(name: str, by_itself: bool) -> None:
    how: dict[str, Any] = {"name": name, "options": {"solver_order": 3} if by_itself else {}}
    job = start(**how)
    for _ in range(3):
        step(job)
    state = job.state()
    assert state is not None
    latents = state.tensors["latents"]
    other = next(path for path in state.tensors if path != "latents")
    wrong = {
        "step": replace(state, step=7),
        "latents": replace(state, tensors={**state.tensors, "latents": latents[:, :2]}),
        "float64": replace(state, tensors={**state.tensors, "latents": latents.double()}),
        "NaN": replace(state, tensors={**state.tensors, other: latents * torch.nan}),
        "int64": replace(state, tensors={**state.tensors, other: latents.long()}),
        "'more'": replace(state, tensors={**state.tensors, "more": latents}),
        "'history.9'": replace(state, tensors={**state.tensors, "history.9": latents}),
        "random_state": replace(state, random_state=state.random_state[:-1]),
    }
    if not by_itself:
        wrong["missing"] = replace(state, tensors={"latents": latents})
    else:
        number = {"scheduler.lower_order_nums": torch.tensor(10**6)}
        wrong["out of range"] = replace(state, tensors={**state.tensors, **number})
    for told, bad in wrong.items():
        with pytest.raises(JobStateError, match=told):
            start(**how).resume(bad)
