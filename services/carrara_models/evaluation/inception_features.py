"""Inception v3's features of pictures: by FID's published weights, or torchvision's.

FID's weights come from a TensorFlow graph of 2015 (Heusel et al. 2017) that pools and resizes
otherwise than torchvision does, so the two are different feature spaces.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from carrara_models.errors import CheckpointError
from carrara_models.evaluation.features import (
    BATCH_SIZE,
    Features,
    FeatureSpace,
    extract_in_batches,
)
from carrara_models.evaluation.inception import InceptionV3
from carrara_models.evaluation.preprocessing import Preprocessing

WIDTH = 2048


@dataclass(frozen=True)
class Variant:
    """What tells two Inceptions of equal layers apart.

    Attributes:
        padded_mean: As `InceptionV3` takes it.
        last_pool: Likewise.
    """

    name: str
    padded_mean: bool
    last_pool: str
    preprocessing: Preprocessing


# By the number of classes, which the weights tell.
VARIANTS = {
    1008: Variant(
        name="inception",
        padded_mean=False,
        last_pool="max",
        preprocessing=Preprocessing(
            resize="square",
            size=299,
            crop=299,
            interpolation="tf1_bilinear",
            mean=(128 / 255,) * 3,
            std=(128 / 255,) * 3,
        ),
    ),
    1000: Variant(
        name="inception_torchvision",
        padded_mean=True,
        last_pool="mean",
        preprocessing=Preprocessing(
            resize="shortest_edge",
            size=342,
            crop=299,
            interpolation="bilinear",
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        ),
    ),
}


class InceptionNetwork:
    """A `FeatureNetwork`."""

    def __init__(self, model: InceptionV3, *, space: FeatureSpace, device: torch.device) -> None:
        self.space = space
        self._model, self._device = model, device

    def extract(self, pictures: NDArray[np.uint8], *, batch_size: int = BATCH_SIZE) -> Features:
        """Features of pictures uint8 [N, H, W, 3], in their order."""
        return extract_in_batches(
            self._model, pictures, space=self.space, device=self._device, batch_size=batch_size
        )


def load_inception(file: Path, *, device: torch.device | str = "cpu") -> InceptionNetwork:
    """Loads Inception v3, in float32.

    Args:
        file: A safetensors file of torchvision's names for the layers. With 1008 classes it holds
            FID's weights, which torch-fidelity and pytorch-fid publish; with 1000, torchvision's.

    Raises:
        CheckpointError: It is missing, a pickle, broken, or holds something else.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing.")
    if file.suffix != ".safetensors":
        raise CheckpointError(
            f"{file} is no safetensors file. A pickle (.pth) is never loaded because it can run "
            "code. Convert it once, where you trust it: `safetensors.torch.save_file("
            f"torch.load({file.name!r}, weights_only=True), '{file.stem}.safetensors')`."
        )
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is broken: {error}") from error
    classes = len(tensors["fc.weight"]) if "fc.weight" in tensors else None
    if classes not in VARIANTS:
        raise CheckpointError(
            f"{file} is no Inception v3 known here: its fc.weight has {classes} classes; "
            f"known: {', '.join(f'{n} ({v.name})' for n, v in VARIANTS.items())}."
        )
    variant = VARIANTS[classes]
    with torch.device("meta"):
        model = InceptionV3(padded_mean=variant.padded_mean, last_pool=variant.last_pool)
    wanted = model.state_dict()
    # Batch normalisation counts batches in training only; FID's weights lack the counts.
    counts = {name for name in wanted if name.endswith("num_batches_tracked")}
    if missing := sorted(wanted.keys() - tensors.keys() - counts):
        raise CheckpointError(f"{file} lacks {len(missing)} tensors, {missing[0]} for one.")
    used = {name: tensors[name].float() for name in wanted.keys() - counts}
    try:
        model.load_state_dict(
            used | {name: torch.tensor(0) for name in counts}, assign=True, strict=True
        )
    except RuntimeError as error:
        raise CheckpointError(f"{file} holds tensors of other shapes: {error}") from error
    space = FeatureSpace(variant.name, _fingerprint(used), WIDTH, variant.preprocessing)
    device = torch.device(device)
    return InceptionNetwork(model.eval().to(device), space=space, device=device)


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Over those that the network uses, so that classifiers and file names do not count."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
