"""Holds a request against what a latent generator consumes and produces, before any compute."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from carrara_models.contracts import Contract, Kind
from carrara_models.errors import ContractError


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


def conditioning_rows(
    conditioning: Mapping[str, torch.Tensor], consumed: Contract, *, guidance_scale: float
) -> tuple[torch.Tensor, float | None]:
    """Lays the embeddings out as rows of the network's batch.

    Returns:
        [2, L, D], the negative half first, and the scale; [1, L, D] and None where guidance is off,
        because the negative embeddings are missing or the scale is at most 1.

    Raises:
        ContractError: The embeddings have another shape than the generator takes.
    """
    positive = _checked("prompt_embeds", conditioning, consumed)
    if "negative_prompt_embeds" not in conditioning:
        return positive, None
    negative = _checked("negative_prompt_embeds", conditioning, consumed)
    if negative.shape != positive.shape:
        raise ContractError(
            f"prompt_embeds are {list(positive.shape)}, "
            f"negative_prompt_embeds {list(negative.shape)}."
        )
    if guidance_scale <= 1:
        return positive, None
    return torch.cat([negative, positive]), guidance_scale


def _checked(
    name: str, conditioning: Mapping[str, torch.Tensor], consumed: Contract
) -> torch.Tensor:
    if name not in conditioning:
        raise ContractError(f"The conditioning has no {name}.")
    embeds = conditioning[name]
    width = next(spec.shape[2] for spec in consumed.tensors if spec.name == name)
    if embeds.dim() != 3 or embeds.shape[0] != 1 or 0 in embeds.shape or embeds.shape[2] != width:
        raise ContractError(
            f"{name} are {list(embeds.shape)}; the generator takes [1, any, {width}]."
        )
    if not embeds.is_floating_point():
        raise ContractError(f"{name} are {embeds.dtype}; the generator takes real numbers.")
    return embeds
