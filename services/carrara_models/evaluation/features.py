"""The seam between pictures and measures: what a feature network offers, and what its numbers mean.

It knows no network and no measure.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carrara_models.errors import BadFieldError, ContractError, NumericalError
from carrara_models.evaluation.preprocessing import Preprocessing

BATCH_SIZE = 32


@dataclass(frozen=True)
class FeatureSpace:
    """What features mean; numbers made in different ones are never compared.

    Attributes:
        name: Ends the keys of measures: "inception" makes `fid_inception`.
        fingerprint: SHA-256 of the network's weights; 64 hexadecimal digits.
        width: D, the numbers per picture.
        preprocessing: What a picture goes through first.
    """

    name: str
    fingerprint: str
    width: int
    preprocessing: Preprocessing

    def to_json(self) -> dict[str, Any]:
        """As an object of JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "FeatureSpace":
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError: A field is missing or unknown.
        """
        preparation = dict(content["preprocessing"])
        for name in ("mean", "std"):
            preparation[name] = tuple(preparation[name])
        return cls(**content | {"preprocessing": Preprocessing(**preparation)})


@dataclass(frozen=True, eq=False)
class Features:
    """Features of pictures or captions.

    Attributes:
        values: float32 [N, D].
    """

    space: FeatureSpace
    values: NDArray[np.float32]


class FeatureNetwork(Protocol):
    """A network that pictures are compared by."""

    space: FeatureSpace

    def extract(self, pictures: NDArray[np.uint8], *, batch_size: int = BATCH_SIZE) -> Features:
        """Features of pictures uint8 [N, H, W, 3], in their order."""
        ...


@torch.inference_mode()
def extract_in_batches(
    forward: Callable[[Tensor], Tensor],
    pictures: NDArray[np.uint8],
    *,
    space: FeatureSpace,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
) -> Features:
    """Prepares pictures and takes them through a network.

    Args:
        forward: Pixels float32 [B, 3, crop, crop] to features [B, D].
        pictures: uint8 [N, H, W, 3].

    Raises:
        BadFieldError: The pictures have another dtype or shape.
        NumericalError: A feature is NaN or infinite.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        found = f"{pictures.dtype} {list(pictures.shape)}"
        raise BadFieldError("pictures", found, "uint8 [N, H, W, 3]")
    values = np.empty((len(pictures), space.width), dtype=np.float32)
    for start in range(0, len(pictures), batch_size):
        pixels = space.preprocessing.apply(pictures[start : start + batch_size])
        values[start : start + batch_size] = forward(pixels.to(device)).float().cpu().numpy()
    if not np.isfinite(values).all():
        raise NumericalError(f"the features of {space.name}")
    return Features(space, values)


def require_same_space(ours: FeatureSpace, theirs: FeatureSpace, *, who: tuple[str, str]) -> None:
    """Refuses to compare across features.

    Args:
        who: What has `ours` and what has `theirs`, for the message.

    Raises:
        ContractError: They differ; the message names what differs on both sides.
    """
    differing = [
        field.name
        for field in fields(FeatureSpace)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    if differing:
        sides = [
            f"{name}: {', '.join(f'{field} {getattr(space, field)}' for field in differing)}"
            for name, space in zip(who, (ours, theirs), strict=True)
        ]
        raise ContractError(f"Features of different spaces are not compared: {'; '.join(sides)}.")
