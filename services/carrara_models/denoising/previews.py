"""What a job looks like on its way: the predicted x_0 as a small picture.

It reads a job and changes nothing of it: neither its numbers nor its random generator.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional

from carrara_models.checkpoints import MANIFEST, Checkpoint
from carrara_models.contracts import Contract
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.originals import original_of
from carrara_models.errors import CheckpointError
from carrara_models.limits import MAX_PREVIEW_SIDE
from carrara_models.parts import Preview


def preview_of_pixels(job: DenoisingJob, output: torch.Tensor) -> torch.Tensor:
    """Of jobs that paint pixels; a `carrara_models.parts.Preview`."""
    pixels, scheduler = _shrunk(original_of(job, output)), job.scheduler
    # Of what is shrunk: it sorts all numbers. Schedulers may have the entry from another's config.
    if scheduler.config.get("thresholding") and hasattr(scheduler, "_threshold_sample"):
        pixels = scheduler._threshold_sample(pixels)
    return _bytes(pixels)


def preview_of_latents(
    checkpoint: Checkpoint, produced: Contract, *, device: torch.device
) -> Preview | None:
    """Of jobs that paint latents, by the projection in the checkpoint's `carrara.json`.

    Args:
        produced: The latents' contract.

    Returns:
        None without a projection: one of other latents would show other colours.

    Raises:
        CheckpointError: The projection is of other latents.
    """
    projection = checkpoint.rgb_projection
    if projection is None:
        return None
    file, (latents,) = checkpoint.path / MANIFEST, produced.tensors
    again = "fit it again with `carrara train previews`."
    if projection.channels != latents.shape[1]:
        raise CheckpointError(
            f"{file}: the projection is of {projection.channels} channels; the latents have "
            f"{latents.shape[1]}: {again}"
        )
    if projection.space and produced.space not in ("", projection.space):
        raise CheckpointError(
            f"{file}: the projection is of the latents of {projection.space}; this autoencoder's "
            f"fingerprint is {produced.space}: {again}"
        )
    return partial(_projected, weights=torch.tensor(projection.weights, device=device))


def _projected(job: DenoisingJob, output: torch.Tensor, *, weights: torch.Tensor) -> torch.Tensor:
    """By the equations of `carrara_models.rgb_projection`."""
    cells = original_of(job, output).movedim(1, -1)  # [1, h, w, C]
    channels = cells.shape[-1]
    means = functional.pad(cells.mean(dim=(0, 1, 2)), (0, 1), value=1.0)  # [C + 1]
    projection = (weights * means[:, None]).sum(dim=1)  # [2C + 1, 3]
    colours = cells @ projection[:channels] + means @ projection[channels:]
    return _bytes(_shrunk(colours.movedim(-1, 1)))


def _shrunk(pixels: torch.Tensor) -> torch.Tensor:
    """A picture [1, 3, h, w] as it may be sent: each pixel the mean of those that it stands for."""
    longest = max(pixels.shape[2:])
    if longest <= MAX_PREVIEW_SIDE:
        return pixels
    size = [max(1, side * MAX_PREVIEW_SIDE // longest) for side in pixels.shape[2:]]
    return functional.interpolate(pixels, size, mode="area")


def _bytes(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [h, w, 3] of [1, 3, h, w] in [-1, 1]."""
    levels = (pixels[0].nan_to_num() * 0.5 + 0.5).clamp(0, 1) * 255
    return levels.round().to(torch.uint8).movedim(0, -1)
