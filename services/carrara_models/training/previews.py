"""Fits the linear map that previews of latents are made with, and writes it into `carrara.json`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from carrara_models.checkpoints import (
    MANIFEST,
    Checkpoint,
    open_checkpoint,
    read_manifest,
    write_manifest,
)
from carrara_models.errors import CheckpointError
from carrara_models.families import load_part
from carrara_models.rgb_projection import RGB_PROJECTION, RgbProjection
from carrara_models.training.data.drawn import DrawnWorld
from carrara_models.training.data.examples import Source
from carrara_models.training.data.picture_folder import open_folder
from carrara_models.training.data.pictures import Framing

# Of the pictures' side where neither caller nor checkpoint says one, in pixels.
DEFAULT_SIZE = 256
BATCH_SIZE = 8
SEED = 0
DECODER = "decoder"  # the stage that has the autoencoder


@dataclass(frozen=True)
class Fit:
    """A fitted projection.

    Attributes:
        r_squared: Share of the colours' variance over cells that it explains.
        cells: Latent cells that it was fitted to.
    """

    projection: RgbProjection
    r_squared: float
    cells: int


def fit_previews(
    name_or_folder: str, *, pictures: Path | None, size: int | None, num_pictures: int
) -> tuple[Path, Fit]:
    """Fits the projection of a checkpoint and writes it.

    Args:
        name_or_folder: A checkpoint with an autoencoder; of a cascade folder, the one that has the
            decoder.
        pictures: A folder of pictures; None for scenes of the drawn world.
        size: Of the pictures' sides, in pixels; None for what the checkpoint paints.
        num_pictures: How many are looked at; a folder with fewer is gone through again.

    Returns:
        The file, and what was fitted.

    Raises:
        CheckpointError: There is no such checkpoint, it has no autoencoder, or the file cannot be
            written.
        FileNotFoundError: There is no such folder of pictures.
        DataError: It holds none.
        ValueError: The size is no multiple of the autoencoder's size factor.
    """
    checkpoint = open_checkpoint(name_or_folder, stage=DECODER)
    side = size or checkpoint.defaults.height or DEFAULT_SIZE
    source: Source = DrawnWorld(height=side, width=side, seed=SEED)
    if pictures is not None:
        framing = Framing(height=side, width=side)
        source = open_folder(pictures, framing=framing, seed=SEED, captions_required=False)
    batches = (
        source.examples(range(start, min(start + BATCH_SIZE, num_pictures))).pixels
        for start in range(0, num_pictures, BATCH_SIZE)
    )
    fit = fit_projection(checkpoint, batches)
    return write_projection(checkpoint, fit.projection), fit


@torch.inference_mode()
def fit_projection(checkpoint: Checkpoint, batches: Iterable[Tensor]) -> Fit:
    """Fits, by least squares, the mean colour of each cell's pixels to its latents.

    Args:
        checkpoint: Opened for its decoder.
        batches: Pixels [B, 3, H, W] in [-1, 1].

    Raises:
        ValueError: The pictures' size is no multiple of the autoencoder's size factor.
    """
    part = load_part(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    consumed = part.consumes[0].contract
    factor, channels = consumed.size_factor, consumed.tensors[0].shape[1]
    # Sums over all cells, in float64, of what the weights are for and of the colours, each with the
    # others; the last of what the weights are for is 1.
    width = (2 * channels + 1) * (channels + 1)
    inputs_squared = torch.zeros(width, width, dtype=torch.float64)
    products = torch.zeros(width, 3, dtype=torch.float64)
    colours_squared = torch.zeros(3, dtype=torch.float64)
    for pixels in batches:
        if any(side % factor for side in pixels.shape[2:]):
            raise ValueError(f"the size is no multiple of {factor}, the pixels of a latent cell")
        latents = part.encode(pixels).double()
        means = latents.mean(dim=(2, 3), keepdim=True).expand_as(latents)
        means = _rows(torch.cat([means, torch.ones_like(latents[:, :1])], dim=1))
        cells = torch.cat([_rows(latents), means], dim=1)
        inputs = (cells[:, :, None] * means[:, None, :]).flatten(start_dim=1)
        colours = _rows(functional.avg_pool2d(pixels, factor)).double()
        inputs_squared += inputs.T @ inputs
        products += inputs.T @ colours
        colours_squared += colours.square().sum(dim=0)
    solved = torch.linalg.lstsq(inputs_squared, products, driver="gelsd").solution
    count, sums = inputs_squared[-1, -1], products[-1]
    explained = (solved * products).sum(dim=0) - sums.square() / count
    variance = colours_squared - sums.square() / count
    numbers = [tuple(float(f"{number:.6g}") for number in row) for row in solved.tolist()]
    weights = tuple(
        tuple(numbers[start : start + channels + 1]) for start in range(0, width, channels + 1)
    )
    return Fit(
        projection=RgbProjection(weights, consumed.space),
        r_squared=float(explained.sum() / variance.sum()),
        cells=int(count),
    )


def write_projection(checkpoint: Checkpoint, projection: RgbProjection) -> Path:
    """Puts a projection into the checkpoint's `carrara.json`, made if there is none.

    No fingerprint depends on that file.

    Raises:
        CheckpointError: It cannot be read or written.
    """
    manifest = read_manifest(checkpoint.path)
    if not manifest["fingerprints"]:  # a whole folder computes them
        del manifest["fingerprints"]
    try:
        return write_manifest(checkpoint.path, {**manifest, RGB_PROJECTION: projection.written()})
    except OSError as error:
        file = checkpoint.path / MANIFEST
        raise CheckpointError(f"{file} cannot be written: {error.strerror}") from error


def _rows(maps: Tensor) -> Tensor:
    """[B, C, h, w] as one row of C numbers for each cell."""
    return maps.movedim(1, -1).flatten(end_dim=-2)
