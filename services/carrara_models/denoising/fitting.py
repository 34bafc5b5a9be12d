"""Holds a request against what a denoiser consumes and produces, before any compute."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from carrara_models.contracts import Contract, Kind, TensorSpec
from carrara_models.errors import ContractError
from carrara_models.parts import DenoisingRequest


def agreed_size_factor(produced: Contract, consumer: Contract | None) -> int:
    """Pixels per latent cell: as the generator knows it, or as its consumer says.

    Raises:
        ContractError: The two differ, neither knows, or the consumer takes something else.
    """
    if consumer is None:
        if not produced.size_factor:
            raise ContractError(
                "This generator has no VAE beside it, so the request must carry what its consumer, "
                "the decoder, takes: the size factor is not guessed."
            )
        return produced.size_factor
    if consumer.kind is not Kind.LATENTS:
        raise ContractError(
            f"The generator makes latents; its consumer takes {consumer.kind.name.lower()}."
        )
    (latents,) = produced.tensors
    channels = latents.shape[1]
    for spec in consumer.tensors:
        if spec.name == "latents" and (len(spec.shape) != 4 or spec.shape[1] not in (0, channels)):
            raise ContractError(
                f"The generator makes latents [1, {channels}, h, w]; "
                f"its consumer takes {list(spec.shape)} (0 = any)."
            )
    factors = {produced.size_factor, consumer.size_factor} - {0}
    if len(factors) != 1:
        raise ContractError(
            f"The generator's size factor is {produced.size_factor}, its consumer's "
            f"{consumer.size_factor} (0 = unknown); they must agree, and one must be known."
        )
    return factors.pop()


def guidance_of(
    request: DenoisingRequest, guidance_scale: float, *, name: str = "guidance_scale"
) -> float | None:
    """The scale of classifier-free guidance; None where it is off.

    It is off at 1 and below, and where the conditioning has no negative half.

    Args:
        guidance_scale: As settled.
        name: Of the setting.

    Raises:
        ContractError: The request itself asks for guidance, and there is no negative half.
    """
    has_negative = any(tensor.startswith("negative_") for tensor in request.conditioning)
    if has_negative:
        return guidance_scale if guidance_scale > 1 else None
    if (getattr(request, name) or 0) > 1:
        raise ContractError(
            f"{name} is {getattr(request, name):g}, but the conditioning has no "
            "negative_prompt_embeds: the prompt was encoded without guidance."
        )
    return None


def conditioning_inputs(
    conditioning: Mapping[str, torch.Tensor],
    consumed: Contract,
    *,
    guided: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Lays the conditioning out as rows of the network's batch.

    Returns:
        Each tensor that the contract requires, by its name: [2, ...] with the negative half first,
        or [1, ...] without guidance. Real numbers are in `dtype`; masks keep their own.

    Raises:
        ContractError: A tensor is missing or has another shape than the denoiser takes.
    """
    specs = {spec.name: spec for spec in consumed.tensors}
    inputs = {}
    for name, spec in specs.items():
        if not spec.required or name.startswith("negative_"):
            continue
        positive = _checked(spec, conditioning)
        rows = [positive]
        twin = "negative_" + name
        if twin in conditioning and twin in specs:
            negative = _checked(specs[twin], conditioning)
            if negative.shape != positive.shape:
                raise ContractError(
                    f"{name} are {list(positive.shape)}, {twin} {list(negative.shape)}."
                )
            rows = [negative, positive]
        elif guided:
            raise ContractError(f"The conditioning has no {twin}.")
        joined = torch.cat(rows) if guided else positive
        inputs[name] = joined.to(device, dtype if joined.is_floating_point() else joined.dtype)
    return inputs


def _checked(spec: TensorSpec, conditioning: Mapping[str, torch.Tensor]) -> torch.Tensor:
    name = spec.name
    if name not in conditioning:
        raise ContractError(f"The conditioning has no {name}.")
    tensor = conditioning[name]
    shape = list(tensor.shape)
    fits = len(shape) == len(spec.shape) and all(
        size and wanted in (0, size) for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(size) if size else "any" for size in spec.shape)
        raise ContractError(f"{name} are {shape}; the denoiser takes [{wanted}].")
    if not name.endswith("mask") and not tensor.is_floating_point():
        raise ContractError(f"{name} are {tensor.dtype}; the denoiser takes real numbers.")
    return tensor
