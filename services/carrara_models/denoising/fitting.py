"""Holds a request against what a denoiser consumes and produces, before any compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from carrara_models.contracts import Contract, Kind, TensorSpec
from carrara_models.errors import ContractError
from carrara_models.parts import DenoisingRequest, Sample


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


def check_consumer(produced: Sequence[Contract], consumer: Contract | None) -> None:
    """Refuses a consumer that takes something else than the part makes.

    Args:
        consumer: None where the sample is for the caller.

    Raises:
        ContractError: It takes another kind, or another shape, or wants what is not made.
    """
    if consumer is None:
        return
    made = next((contract for contract in produced if contract.kind is consumer.kind), None)
    if made is None:
        kinds = " or ".join(_kind_name(contract.kind) for contract in produced)
        raise ContractError(
            f"This part makes {kinds}; its consumer takes {_kind_name(consumer.kind)}."
        )
    shapes = {spec.name: spec.shape for spec in made.tensors}
    for spec in consumer.tensors:
        shape = shapes.get(spec.name)
        if shape is None and spec.required:
            raise ContractError(f"This part makes no {spec.name}, which its consumer takes.")
        if shape is not None and not _meet(shape, spec.shape):
            raise ContractError(
                f"This part makes {spec.name} {list(shape)}; its consumer takes "
                f"{list(spec.shape)} (0 = any)."
            )


def sample_tensors(
    sample: Sample | None, consumed: Contract, *, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """What the part before has made, as a denoiser's network takes it.

    Returns:
        Each tensor of the contract, by its name; an optional one only where the sample has it.

    Raises:
        ContractError: There is no sample, a tensor is missing or has another shape than the
            denoiser takes, or pixels have another size than the sample says.
    """
    if sample is None:
        raise ContractError(
            f"The request has no sample; this part takes {_kind_name(consumed.kind)}."
        )
    tensors = {
        spec.name: checked(spec, sample.tensors, of="sample").to(device, dtype)
        for spec in consumed.tensors
        if spec.required or spec.name in sample.tensors
    }
    if "pixels" in tensors:
        size = tuple(tensors["pixels"].shape[2:])
        if (sample.height, sample.width) != size:
            raise ContractError(
                f"The sample says {sample.height} x {sample.width} pixels; "
                f"its pixels are {size[0]} x {size[1]}."
            )
    return tensors


def guided_rows(request: DenoisingRequest, *, default: float) -> int:
    """Rows of the network's batch: two with guidance, else one.

    Args:
        default: Of the guidance scale.
    """
    scale = default if request.guidance_scale is None else request.guidance_scale
    return 2 if scale > 1 and "negative_prompt_embeds" in request.conditioning else 1


def guidance_of(
    request: DenoisingRequest,
    guidance_scale: float,
    *,
    name: str = "guidance_scale",
    at_any_scale: bool = False,
) -> float | None:
    """The scale of classifier-free guidance; None where it is off.

    It is off at 1 and below, and where the conditioning has no negative half.

    Args:
        guidance_scale: As settled.
        name: Of the setting.
        at_any_scale: Whether it is on at 1 and below too, as in unCLIP, whose pipeline turns it on
            for all stages if one of them wants it.

    Raises:
        ContractError: The request itself asks for guidance, and there is no negative half.
    """
    has_negative = any(tensor.startswith("negative_") for tensor in request.conditioning)
    if has_negative:
        return guidance_scale if at_any_scale or guidance_scale > 1 else None
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
        positive = checked(spec, conditioning)
        rows = [positive]
        twin = "negative_" + name
        if twin in conditioning and twin in specs:
            negative = checked(specs[twin], conditioning)
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


def _kind_name(kind: Kind) -> str:
    return kind.name.lower().replace("_", " ")


def _meet(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether two shapes can be one; 0 stands for any size."""
    return len(left) == len(right) and all(
        a == b or 0 in (a, b) for a, b in zip(left, right, strict=True)
    )


def checked(
    spec: TensorSpec, tensors: Mapping[str, torch.Tensor], *, of: str = "conditioning"
) -> torch.Tensor:
    """One tensor of a payload.

    Args:
        of: How a message calls the payload.

    Raises:
        ContractError: It is missing or has another shape than the denoiser takes.
    """
    name = spec.name
    if name not in tensors:
        raise ContractError(f"The {of} has no {name}.")
    tensor = tensors[name]
    shape = list(tensor.shape)
    if 0 in shape or not _meet(shape, spec.shape):
        wanted = ", ".join(str(size) if size else "any" for size in spec.shape)
        raise ContractError(f"{name} are {shape}; the denoiser takes [{wanted}].")
    if not name.endswith("mask") and not tensor.is_floating_point():
        raise ContractError(f"{name} are {tensor.dtype}; the denoiser takes real numbers.")
    return tensor
