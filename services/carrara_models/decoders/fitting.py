"""Holds a sample against what a decoder consumes, before any compute."""

from __future__ import annotations

import torch

from carrara_models import limits
from carrara_models.contracts import Contract
from carrara_models.errors import ContractError
from carrara_models.parts import Sample


def checked_latents(sample: Sample, consumed: Contract) -> torch.Tensor:
    """The latents of a sample, [1, C, h, w].

    Raises:
        ContractError: They are missing, have another shape than the decoder takes, stand for
            another size than the sample says, or for too many pixels.
    """
    channels, factor = consumed.tensors[0].shape[1], consumed.size_factor
    latents = sample.tensors.get("latents")
    if latents is None:
        raise ContractError("The sample has no latents.")
    shape = list(latents.shape)
    if len(shape) != 4 or shape[:2] != [1, channels] or 0 in shape:
        raise ContractError(f"The latents are {shape}; the decoder takes [1, {channels}, h, w].")
    if not latents.is_floating_point():
        raise ContractError(f"The latents are {latents.dtype}; the decoder takes real numbers.")
    height, width = shape[2] * factor, shape[3] * factor
    if (sample.height, sample.width) != (height, width):
        raise ContractError(
            f"The sample says {sample.height} x {sample.width} pixels; its latents {shape} "
            f"stand for {height} x {width} with the decoder's size factor {factor}."
        )
    if height * width > limits.MAX_PIXELS:
        raise ContractError(
            f"The latents {shape} stand for {height * width} pixels; "
            f"at most {limits.MAX_PIXELS} are decoded."
        )
    return latents
