"""Cascade folders: a `cascade.toml`, and beside it the checkpoint folders that it names.

The file is a manifest as `carrara.manifest` has it. What a checkpoint is, is not known here.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carrara_models.errors import CheckpointError

CASCADE = "cascade.toml"
CASCADE_FORMAT = 1


@dataclass(frozen=True)
class CascadeStage:
    """Where one stage of a cascade folder lies.

    Attributes:
        folder: Of the checkpoint that has it.
        fingerprint: Of the stage; None where any will do.
    """

    role: str
    folder: Path
    fingerprint: str | None = None


def read_cascade(path: Path) -> dict[str, CascadeStage]:
    """Reads a cascade folder's stages by name, in the order of the image's way.

    Returns:
        Nothing for any other folder; one with a `model_index.json` is itself a checkpoint.

    Raises:
        CheckpointError: The file is broken, names a stage twice, or says what a folder cannot keep.
    """
    file = path / CASCADE
    if not file.is_file() or (path / "model_index.json").is_file():
        return {}
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if content.get("format") != CASCADE_FORMAT:
        raise CheckpointError(
            f"{file} has format {content.get('format')!r}; this version reads {CASCADE_FORMAT}."
        )
    entries = content.get("stages")
    if not isinstance(entries, list) or not entries:
        raise CheckpointError(f"{file} has no [[stages]].")
    stages: dict[str, CascadeStage] = {}
    for index, entry in enumerate(entries):
        name, stage = _stage(entry, where=f"{file}: stages[{index}]", path=path)
        if name in stages:
            raise CheckpointError(f"{file} names the {name} twice; a cascade folder has it once.")
        stages[name] = stage
    return stages


def write_cascade(path: Path, stages: Mapping[str, CascadeStage]) -> None:
    """Writes the `cascade.toml` of a folder, for stages in folders right inside it."""
    lines = [f"format = {CASCADE_FORMAT}"]
    for name, stage in stages.items():
        lines += ["", "[[stages]]", f"role = {json.dumps(stage.role)}"]
        lines += [f"stage = {json.dumps(name)}"]
        lines += [f"checkpoint = {json.dumps(str(stage.folder.relative_to(path)))}"]
        if stage.fingerprint is not None:
            lines += [f"fingerprint = {json.dumps(stage.fingerprint)}"]
    (path / CASCADE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _stage(entry: Any, *, where: str, path: Path) -> tuple[str, CascadeStage]:
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"{where} is no table.")
    known = ("role", "stage", "checkpoint", "fingerprint")
    for key, value in entry.items():
        if key not in known:
            raise CheckpointError(
                f"{where}: a cascade folder has no {key!r}, only {', '.join(known)}; a manifest "
                "that says more is given as --cascade."
            )
        if not isinstance(value, str):
            raise CheckpointError(f"{where}.{key} cannot be {value!r}.")
    for key in ("role", "checkpoint"):
        if key not in entry:
            raise CheckpointError(f"{where} has no {key}.")
    folder = path / entry["checkpoint"]
    if not folder.is_dir():
        raise CheckpointError(f"{where}.checkpoint: there is no folder {folder}.")
    return (
        entry.get("stage", entry["role"]),
        CascadeStage(entry["role"], folder, entry.get("fingerprint")),
    )
