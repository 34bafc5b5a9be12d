"""Samples of latents to pixels, each held against what its decoder consumes before any compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers.image_processor import PixArtImageProcessor

from carrara_models import limits
from carrara_models.contracts import Contract
from carrara_models.errors import ContractError, NumericalError
from carrara_models.parts import Described, Sample


def decode_latents(
    part: Described,
    samples: Sequence[Sample],
    autoencoder: Callable[[torch.Tensor], torch.Tensor],
) -> list[torch.Tensor | NumericalError]:
    """Does the work of `carrara_models.parts.Decoder.decode`.

    In exact numerics one image at a time, as convolutions round differently in a batch, whatever
    is chunked.

    Args:
        autoencoder: Latents [B, C, h, w], in the dtype of the part, to pixels [B, 3, H, W].

    Raises:
        ContractError: A sample does not fit.
    """
    consumed = part.consumes[0].contract
    latents = [
        checked_latents(sample, consumed).to(device=part.device, dtype=part.dtype)
        for sample in samples
    ]
    batches = latents if part.numerics.exact else [torch.cat(latents)]
    decoded = [pixels for batch in batches for pixels in autoencoder(batch).split(1)]
    return [
        _finished(pixels, resize_to=sample.resize_to)
        for pixels, sample in zip(decoded, samples, strict=True)
    ]


def _finished(
    pixels: torch.Tensor, *, resize_to: tuple[int, int] | None
) -> torch.Tensor | NumericalError:
    if resize_to is not None:
        height, width = resize_to
        pixels = PixArtImageProcessor.resize_and_crop_tensor(pixels, width, height)
    return pixels if torch.isfinite(pixels).all() else NumericalError("pixels")


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
