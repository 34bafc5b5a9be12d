"""What a running job has beyond its request, as named tensors, and back: to go on elsewhere.

Starting the request again gives all else: the inputs, the scheduler with its timesteps, the noised
picture. A state comes from outside, so that nothing of it is used before it was looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from carrara_models.denoising.random import torch_generator
from carrara_models.errors import BadFieldError, JobStateError
from carrara_models.limits import MAX_INFERENCE_STEPS
from carrara_models.parts import JobState

if TYPE_CHECKING:
    from carrara_models.denoising.job import DenoisingJob

LATENTS, HISTORY, SCHEDULER = "latents", "history", "scheduler"
# Of history, and of each list of a scheduler.
MAX_LENGTH = 8
# Twice the steps: Heun calls the network twice for each.
MAX_NUMBER = 2 * MAX_INFERENCE_STEPS

# What each scheduler keeps from step to step where it steps by itself, besides its count of steps.
# Of a class that is not here nothing is known.
KEPT: Mapping[str, tuple[str, ...]] = {
    "DDIMScheduler": (),
    "DDPMScheduler": (),
    "DEISMultistepScheduler": ("model_outputs", "lower_order_nums"),
    "DPMSolverMultistepScheduler": ("model_outputs", "lower_order_nums"),
    "EulerAncestralDiscreteScheduler": ("is_scale_input_called",),
    "EulerDiscreteScheduler": ("is_scale_input_called",),
    "FlowMatchEulerDiscreteScheduler": (),
    "FlowMatchHeunDiscreteScheduler": ("prev_derivative", "dt", "sample"),
    "HeunDiscreteScheduler": ("prev_derivative", "dt", "sample"),
    "LMSDiscreteScheduler": ("derivatives", "is_scale_input_called"),
    "PNDMScheduler": ("counter", "cur_model_output", "cur_sample", "ets"),
    "UniPCMultistepScheduler": (
        "model_outputs",
        "timestep_list",
        "lower_order_nums",
        "last_sample",
        "this_order",
    ),
    "UnCLIPScheduler": (),
}


def state_of(job: DenoisingJob) -> JobState | None:
    """Takes down where a job is; None where its scheduler is none of `KEPT`."""
    tensors = {LATENTS: job.latents}
    if job.plan is not None:
        tensors |= {f"{HISTORY}.{index}": tensor for index, tensor in enumerate(job.history)}
    elif (names := KEPT.get(type(job.scheduler).__name__)) is None:
        return None
    else:
        for name in names:
            tensors |= _taken_down(f"{SCHEDULER}.{name}", getattr(job.scheduler, name, None))
    return JobState(
        step=job.step,
        # Copies, as PNDM adds to a sum in place.
        tensors={name: tensor.detach().cpu().clone() for name, tensor in tensors.items()},
        random_state=job.torch_generator.get_state(),
    )


def resume(job: DenoisingJob, state: JobState) -> None:
    """Takes a job that has just started to where another one was.

    Raises:
        JobStateError: It is not the state of such a job.
    """
    if not 0 <= state.step < job.num_steps:
        raise JobStateError("step", f"{state.step}; this job has {job.num_steps} steps")
    tensors = dict(state.tensors)
    latents = _placed(tensors.pop(LATENTS, None), LATENTS, job, dtype=job.latents.dtype)
    if job.plan is not None:
        length = max(job.plan[state.step].rule.looks_back, _length(tensors, HISTORY))
        names = [f"{HISTORY}.{index}" for index in range(length)]
        job.history = tuple(
            _placed(tensors.pop(name, None), name, job, dtype=latents.dtype) for name in names
        )
    else:
        _resume_scheduler(job, tensors, step=state.step)
    if tensors:
        raise JobStateError("tensors", f"{sorted(tensors)[0]!r} is nothing that this job keeps")
    try:
        job.torch_generator = torch_generator(state.random_state)
    except BadFieldError as error:
        raise JobStateError(error.field, f"{error.value} is not {error.allowed}") from error
    job.latents, job.step = latents, state.step


def _resume_scheduler(job: DenoisingJob, tensors: dict[str, torch.Tensor], *, step: int) -> None:
    """Takes what is the scheduler's out of `tensors`."""
    scheduler = job.scheduler
    names = KEPT.get(type(scheduler).__name__)
    if names is None:
        raise JobStateError("tensors", f"{type(scheduler).__name__} cannot be resumed")
    for name in names:
        path = f"{SCHEDULER}.{name}"
        if path in tensors:
            setattr(scheduler, name, _value(tensors.pop(path), path, job))
        items = list(getattr(scheduler, name, None) or ()) if _length(tensors, path) else []
        for index in range(MAX_LENGTH):
            item = tensors.pop(f"{path}.{index}", None)
            if item is None:
                continue
            items += [None] * (index + 1 - len(items))
            items[index] = _value(item, f"{path}.{index}", job)
            setattr(scheduler, name, items)
    if step and hasattr(scheduler, "_step_index"):
        scheduler._step_index = step


def _taken_down(path: str, value: Any) -> dict[str, torch.Tensor]:
    if value is None:
        return {}
    if isinstance(value, list):
        taken = (_taken_down(f"{path}.{index}", item) for index, item in enumerate(value))
        return {name: tensor for item in taken for name, tensor in item.items()}
    return {path: torch.as_tensor(value)}


def _length(tensors: Mapping[str, torch.Tensor], path: str) -> int:
    """How many places of a list there are names for, empty ones before the last among them."""
    return max(
        (index + 1 for index in range(MAX_LENGTH) if f"{path}.{index}" in tensors), default=0
    )


def _value(tensor: torch.Tensor, path: str, job: DenoisingJob) -> Any:
    """A tensor like the latents, or a number: whole ones as Python has them."""
    if tensor.ndim:
        return _placed(tensor, path, job)
    if tensor.dtype == torch.bool:
        return bool(tensor)
    if not (bool(tensor.isfinite()) and abs(tensor.item()) <= MAX_NUMBER):
        raise JobStateError(f"tensors[{path}]", f"{tensor.item()} is out of range")
    return tensor.to(job.latents.device) if tensor.is_floating_point() else int(tensor)


def _placed(
    tensor: torch.Tensor | None, path: str, job: DenoisingJob, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A tensor as large as the latents; schedulers keep some in other precisions."""
    like = job.latents
    fits = tensor is not None and tensor.shape == like.shape and tensor.is_floating_point()
    if tensor is None or not fits or dtype not in (None, tensor.dtype):
        given = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise JobStateError(f"tensors[{path}]", f"{given}, not {like.dtype} {list(like.shape)}")
    if not bool(tensor.isfinite().all()):
        raise JobStateError(f"tensors[{path}]", "NaN or infinity")
    return tensor.to(like.device)
