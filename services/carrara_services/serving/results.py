"""What stands around a stage's output: usage, and the events of a stream."""

from __future__ import annotations

from carrara import tensors
from carrara.v1 import stage_pb2
from carrara_services.admission.happenings import Preview, Queued, UnderWay, Usage


def usage(
    value: Usage, *, bytes_in: int, bytes_out: int = 0, cache_hits: int = 0
) -> stage_pb2.Usage:
    """Makes the message of what a request cost.

    Args:
        bytes_in: Of the request.
        bytes_out: Of the output alone.
    """
    return stage_pb2.Usage(
        queue_ms=value.queue_ms,
        running_ms=value.running_ms,
        compute_ms=value.compute_ms,
        steps=value.steps,
        rows=value.rows,
        cache_hits=cache_hits,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
    )


def under_way(happening: UnderWay) -> stage_pb2.Event:
    """Makes the event of something that happens before the result."""
    if isinstance(happening, Queued):
        wait = happening.expected_wait_seconds
        queued = stage_pb2.Queued(
            position=happening.position, expected_start_ms=None if wait is None else wait * 1e3
        )
        return stage_pb2.Event(queued=queued)
    if isinstance(happening, Preview):
        image = tensors.from_numpy(happening.image)
        return stage_pb2.Event(preview=stage_pb2.Preview(step=happening.step, image=image))
    return stage_pb2.Event(
        progress=stage_pb2.Progress(step=happening.step, num_steps=happening.num_steps)
    )
