"""Cuts a checkpoint down to one stage, so that a machine holds no more than it serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from carrara_models.checkpoints import (
    MANIFEST_FORMAT,
    Checkpoint,
    read_manifest,
    write_manifest,
)
from carrara_models.errors import CheckpointError
from carrara_models.rgb_projection import RGB_PROJECTION
from carrara_models.weights import weight_files

WEIGHT_SUFFIXES = {".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx"}


def prune(checkpoint: Checkpoint, *, output: Path) -> Path:
    """Writes the folder of the stage that the checkpoint was opened for.

    It holds that stage's components, `model_index.json`, and a `carrara.json` with the fingerprints
    of all siblings, by which the stage still knows its neighbours, with the checkpoint's defaults
    and its projection for previews.

    Args:
        output: A folder that does not exist yet, or is empty.

    Raises:
        CheckpointError: The output is in use.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} is not empty; give a new folder.")
    output.mkdir(parents=True, exist_ok=True)
    names = checkpoint.components
    for name in names:
        ignored = _other_weights(checkpoint, name)
        shutil.copytree(checkpoint.path / name, output / name, ignore=ignored)
    for name in checkpoint.plan.reads:
        if checkpoint.config(name) is not None:
            (output / name).mkdir()
            shutil.copy2(checkpoint.path / name / "config.json", output / name)
    shutil.copy2(checkpoint.path / "model_index.json", output)
    manifest: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "defaults": read_manifest(checkpoint.path)["defaults"],
        "fingerprints": dict(sorted(checkpoint.fingerprints.items())),
    }
    if checkpoint.rgb_projection is not None:
        manifest[RGB_PROJECTION] = checkpoint.rgb_projection.written()
    write_manifest(output, manifest)
    return output


def _other_weights(checkpoint: Checkpoint, component: str) -> Callable[[str, list[str]], set[str]]:
    """Tells `copytree` which weights to leave behind: pickles, and variants that are not served."""
    folder = checkpoint.path / component
    served: set[str] = set()
    if (folder / "config.json").is_file():
        served = {file.name for file in weight_files(folder, variant=checkpoint.variant)}

    def left_behind(_folder: str, names: list[str]) -> set[str]:
        weights = {name for name in names if Path(name).suffix in WEIGHT_SUFFIXES}
        return weights - served

    return left_behind
