"""What pictures are compared with: statistics of a data set's features, in a folder of two files.

`reference.safetensors` holds the numbers, `reference.json` what they are of. It knows no network.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from carrara_models.errors import CheckpointError, ContractError
from carrara_models.evaluation.distances import Gaussian, fit_gaussian
from carrara_models.evaluation.features import Features, FeatureSpace, require_same_space
from carrara_models.weights import read_json

FORMAT = 1
TENSORS, DESCRIPTION = "reference.safetensors", "reference.json"
KEPT_FEATURES = 2000  # twice a subset of KID


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of a data set's features.

    Attributes:
        data: Which pictures, in words, such as "drawn world, held-out scenes, seed 0".
        gaussian: For FID.
        kept: float32 [K, D], the features of K of the pictures, for KID.
    """

    data: str
    space: FeatureSpace
    gaussian: Gaussian
    kept: NDArray[np.float32]

    @property
    def count(self) -> int:
        """How many pictures the Gaussian is of."""
        return self.gaussian.count

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the numbers; 64 hexadecimal digits."""
        return hashlib.sha256(self._serialized()).hexdigest()

    def require(self, features: Features) -> None:
        """Refuses pictures of another feature space.

        Raises:
            ContractError: The message names both sides.
        """
        who = ("the pictures", f"the reference ({self.data})")
        require_same_space(features.space, self.space, who=who)

    def require_count(self, count: int) -> None:
        """Refuses another count of pictures than its own, as FID falls where either count rises.

        Raises:
            ContractError: The message names both sides.
        """
        if count != self.count:
            raise ContractError(
                f"FID is compared at equal counts only: there are {count} pictures, "
                f"and the reference ({self.data}) is of {self.count}."
            )

    def _serialized(self) -> bytes:
        return save(
            {
                "mean": self.gaussian.mean,
                "covariance": self.gaussian.covariance,
                "kept": np.ascontiguousarray(self.kept),
            }
        )


def make_reference(features: Features, *, data: str, keep: int = KEPT_FEATURES) -> Reference:
    """Statistics of a data set's features.

    Args:
        data: Which pictures, in words.
        keep: How many pictures' features are kept for KID, at most; the first ones.
    """
    return Reference(data, features.space, fit_gaussian(features.values), features.values[:keep])


def write_reference(reference: Reference, folder: Path) -> None:
    """Writes both files; the folder is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TENSORS).write_bytes(reference._serialized())
    description = {
        "format": FORMAT,
        "data": reference.data,
        "count": reference.count,
        "features": reference.space.to_json(),
        "sha256": reference.fingerprint,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_reference(folder: Path) -> Reference:
    """Reads what `write_reference` wrote.

    Raises:
        CheckpointError: A file is missing or broken, or the two do not belong together.
    """
    description = read_json(folder / DESCRIPTION)
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / DESCRIPTION} has format {description.get('format')!r}; "
            f"this version reads {FORMAT}."
        )
    file = folder / TENSORS
    if not file.is_file():
        raise CheckpointError(f"{file} is missing.")
    try:
        tensors = load_file(file)
        reference = Reference(
            data=str(description["data"]),
            space=FeatureSpace.from_json(description["features"]),
            gaussian=Gaussian(tensors["mean"], tensors["covariance"], int(description["count"])),
            kept=tensors["kept"],
        )
        shapes = [list(tensors[name].shape) for name in ("mean", "covariance", "kept")]
        width = reference.space.width
        if shapes != [[width], [width, width], [len(reference.kept), width]]:
            raise ValueError(f"tensors of shapes {shapes} for features of width {width}")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no reference statistics: {error!r}.") from error
    if description.get("sha256") != reference.fingerprint:
        raise CheckpointError(
            f"{folder / DESCRIPTION} was written for sha256 {description.get('sha256')}, "
            f"but {file.name} holds {reference.fingerprint}."
        )
    return reference
