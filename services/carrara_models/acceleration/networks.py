"""The networks of a part."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from carrara_models.parts import Described


def networks_of(part: Described) -> dict[str, torch.nn.Module]:
    """A part's modules by the names of its fields."""
    values: dict[str, Any] = {each.name: getattr(part, each.name) for each in fields(part)}
    return {name: value for name, value in values.items() if isinstance(value, torch.nn.Module)}
