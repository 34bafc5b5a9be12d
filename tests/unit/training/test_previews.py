"""What previews of latents are made with, fitted and written into a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from carrara_models.checkpoints import open_checkpoint
from carrara_models.errors import CheckpointError
from carrara_models.families import load_part
from carrara_models.training.data.drawn import DrawnWorld
from carrara_models.training.previews import fit_previews, fit_projection
from families import kandinsky, sana
from tiny_checkpoints import build_sd1


@pytest.fixture
def sd1(tmp_path: Path) -> Path:
    return build_sd1(tmp_path / "sd1")


def colours_of(pixels: torch.Tensor, factor: int) -> np.ndarray:
    return functional.avg_pool2d(pixels, factor)[0].movedim(0, -1).reshape(-1, 3).double().numpy()


def test_no_other_projection_is_nearer_to_the_pictures(sd1: Path) -> None:
    checkpoint = open_checkpoint(sd1, stage="decoder")
    pictures = DrawnWorld(height=32, width=32, seed=3).examples(range(12)).pixels
    fit = fit_projection(checkpoint, pictures.split(5))
    part = load_part(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    factor = part.consumes[0].contract.size_factor
    inputs, colours = [], []
    for pixels in pictures.split(1):
        cells = part.encode(pixels)[0].movedim(0, -1).reshape(-1, 4).double().numpy()
        means = np.append(cells.mean(axis=0), 1.0)
        cells = np.concatenate([cells, np.broadcast_to(means, (len(cells), 5))], axis=1)
        inputs.append((cells[:, :, None] * means).reshape(len(cells), -1))
        colours.append(colours_of(pixels, factor))
    inputs, colours = np.concatenate(inputs), np.concatenate(colours)
    best = inputs @ np.linalg.lstsq(inputs, colours)[0]
    mine = inputs @ np.array(fit.projection.weights).reshape(-1, 3)
    np.testing.assert_allclose(mine, best, atol=0.02)
    variance = np.square(colours - colours.mean(axis=0)).sum()
    assert fit.r_squared == pytest.approx(1 - np.square(colours - best).sum() / variance, abs=1e-3)
    assert fit.cells == len(colours)


def test_the_file_has_it_and_no_fingerprint_changes(sd1: Path) -> None:
    written = {"format": 1, "defaults": {"height": 32, "width": 32}}
    (sd1 / "carrara.json").write_text(json.dumps(written))
    before = {
        stage: open_checkpoint(sd1, stage=stage).fingerprint for stage in ("generator", "decoder")
    }
    file, fit = fit_previews(str(sd1), pictures=None, size=None, num_pictures=10)
    assert file == sd1 / "carrara.json"
    document = json.loads(file.read_text())
    assert document.pop("rgb_projection")["space"] == open_checkpoint(sd1, stage="decoder").space(
        "vae"
    )
    assert document == written
    assert [path.name for path in sd1.glob("carrara.json*")] == ["carrara.json"]
    after = {stage: open_checkpoint(sd1, stage=stage) for stage in before}
    assert {stage: each.fingerprint for stage, each in after.items()} == before
    generator = load_part(after["generator"], device=torch.device("cpu"), dtype=torch.float32)
    assert generator.preview is not None
    assert fit.cells == 10 * (32 // 8) ** 2


def test_pictures_of_one_s_own_count(sd1: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    _, own = fit_previews(str(sd1), pictures=folder, size=16, num_pictures=6)
    _, drawn = fit_previews(str(sd1), pictures=None, size=16, num_pictures=6)
    assert own.projection != drawn.projection


@pytest.mark.parametrize("case", [kandinsky.CASE, sana.CASE], ids=["movq", "autoencoder-dc"])
def test_every_kind_of_autoencoder_encodes_what_it_decodes(case) -> None:
    """As far as a random one does: latents of the shape and scale that it takes."""
    folder = case.folders[-1]
    checkpoint = open_checkpoint(folder, stage="decoder")
    part = load_part(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    contract = part.consumes[0].contract
    side = 4 * contract.size_factor
    pixels = DrawnWorld(height=side, width=side, seed=0).examples(range(2)).pixels
    assert part.encode(pixels).shape == (2, contract.tensors[0].shape[1], 4, 4)
    assert 0 <= fit_projection(checkpoint, [pixels]).r_squared <= 1


def test_a_checkpoint_without_an_autoencoder_is_refused() -> None:
    with pytest.raises(CheckpointError, match="without a stage 'decoder'"):
        fit_previews("drawn-pixel", pictures=None, size=None, num_pictures=1)


def test_a_size_with_half_a_cell_is_refused(sd1: Path) -> None:
    with pytest.raises(ValueError, match="no multiple of 8"):
        fit_previews(str(sd1), pictures=None, size=33, num_pictures=1)


@pytest.mark.parametrize(
    ("name", "autoencoder"), [("drawn-latent", "vae"), ("drawn-unclip", "movq")]
)
def test_what_ships_with_latents_is_fitted_to_its_own(name: str, autoencoder: str) -> None:
    checkpoint = open_checkpoint(name, stage="generator")
    assert checkpoint.rgb_projection is not None
    assert checkpoint.rgb_projection.space == checkpoint.space(autoencoder)
    assert checkpoint.rgb_projection.channels == 4
