"""What a text encoder hands back: numbers that are numbers, and the words that it did not see."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from carrara_models.errors import NumericalError
from carrara_models.parts import Encoded


def encoding(tensors: Mapping[str, torch.Tensor], *, cut: Mapping[str, str]) -> Encoded:
    """Makes the result of one piece.

    Args:
        tensors: By name.
        cut: The words of each field that were cut; "" where all fitted.

    Raises:
        NumericalError: A tensor holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NumericalError(name)
    return Encoded(tensors, truncated={name: words for name, words in cut.items() if words})
