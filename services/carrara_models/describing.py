"""What a loaded part tells about itself, gathered from its checkpoint and its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from carrara_models.checkpoints import Checkpoint
from carrara_models.contracts import Argument, Component, Contract, Port
from carrara_models.parts import Preview


def described(
    checkpoint: Checkpoint,
    loaded: Mapping[str, Any],
    *,
    consumes: tuple[Port, ...],
    produces: tuple[Contract, ...],
    arguments: tuple[Argument, ...],
    device: torch.device,
    dtype: torch.dtype,
    preview: Preview | None = None,
) -> dict[str, Any]:
    """Gives the fields of `carrara_models.parts.Described`.

    Args:
        loaded: Every component by name: modules, tokenizers, schedulers.
    """
    return {
        "fingerprint": checkpoint.fingerprint,
        "family": checkpoint.family.name,
        "stage": checkpoint.stage,
        "components": tuple(
            Component(
                name=name,
                class_name=type(component).__name__,
                fingerprint=checkpoint.fingerprints[name],
                parameters=_parameters(component),
            )
            for name, component in loaded.items()
        ),
        "consumes": consumes,
        "produces": produces,
        "arguments": arguments,
        "device": device,
        "dtype": dtype,
        "preview": preview,
    }


def _parameters(component: Any) -> int:
    if not isinstance(component, torch.nn.Module):
        return 0
    return sum(parameter.numel() for parameter in component.parameters())
