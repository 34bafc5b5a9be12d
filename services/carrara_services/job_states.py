"""The state of a suspended job as a message, and back.

What comes back is used only where nothing else would come of it than here: the same job, by the
same weights, numerics, versions and number of threads.
"""

from __future__ import annotations

import hashlib

from carrara.v1 import stage_pb2
from carrara_models.errors import JobStateError
from carrara_models.parts import JobState
from carrara_services.torch_tensors import from_torch, read_random_state, to_torch

# Latents, a history or a scheduler's lists; no scheduler has more.
MAX_TENSORS = 32


def write(
    state: JobState,
    *,
    job: stage_pb2.Job,
    provenance: stage_pb2.Provenance,
    usage: stage_pb2.Usage,
) -> stage_pb2.JobState:
    """Makes the message.

    Args:
        job: As it came.
        provenance: Of this stage.
        usage: Until now.
    """
    return stage_pb2.JobState(
        step=state.step,
        tensors={name: from_torch(tensor) for name, tensor in state.tensors.items()},
        random_state=stage_pb2.RandomState(torch_cpu=state.random_state.numpy().tobytes()),
        provenance=provenance,
        job_digest=_digest(job),
        usage=usage,
    )


def read(job: stage_pb2.Job, *, provenance: stage_pb2.Provenance) -> JobState:
    """Reads the state that a job comes with.

    Args:
        provenance: Of this stage.

    Raises:
        JobStateError: It was made elsewhere, or for another job.
        BadFieldError: A tensor or the random state is none.
    """
    message = job.resume
    for field, made in message.provenance.ListFields():
        have = getattr(provenance, field.name)
        if made != have:
            raise JobStateError(f"provenance.{field.name}", f"{_told(made)}, here {_told(have)}")
    if message.provenance != provenance:
        raise JobStateError("provenance", "it lacks what this stage tells")
    if message.job_digest != _digest(job):
        raise JobStateError("job_digest", "the state is of another job")
    if len(message.tensors) > MAX_TENSORS:
        raise JobStateError("tensors", f"{len(message.tensors)}; at most {MAX_TENSORS}")
    state = read_random_state(message.random_state, field="job.resume.random_state")
    if state is None or isinstance(state, int):
        raise JobStateError("random_state", "the state of a torch generator is missing")
    return JobState(
        step=message.step,
        tensors={
            name: to_torch(tensor, field=f"job.resume.tensors[{name}]")
            for name, tensor in message.tensors.items()
        },
        random_state=state,
    )


def add_usage(usage: stage_pb2.Usage, before: stage_pb2.Usage) -> None:
    """Adds what a job had cost before it was suspended."""
    for field in stage_pb2.Usage.DESCRIPTOR.fields:
        setattr(usage, field.name, getattr(usage, field.name) + getattr(before, field.name))


def _digest(job: stage_pb2.Job) -> bytes:
    """SHA-256 of a job without its state."""
    alone = stage_pb2.Job()
    alone.CopyFrom(job)
    alone.ClearField("resume")
    return hashlib.sha256(alone.SerializeToString(deterministic=True)).digest()


def _told(value: object) -> str:
    return str(value).replace("\n", " ").strip()
