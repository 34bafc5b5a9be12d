"""`cascade.toml`: the stages of a cascade, where they are, and which weights belong together.

    format = 1

    [[stages]]
    role = "generator"
    stage = "prior"                      # its name in the family; the role's where it is left out
    checkpoint = "./karlo"               # what to run here; relative to this file's folder
    address = "dns:///prior:50051"       # or where it runs
    fingerprint = "5f1c..."              # 64 hexadecimal digits, as `carrara info` shows it
    also_accepts = ["9d02..."]           # spaces of neighbours from other checkpoints

Each stage has an address or a checkpoint. Their order is the image's way where their contracts
leave a choice.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from carrara.exceptions import InvalidArgumentError

FORMAT = 1
ROLES = ("text-encoder", "generator", "decoder")

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_KEYS = ("role", "stage", "checkpoint", "address", "fingerprint", "also_accepts")


@dataclass(frozen=True)
class ManifestStage:
    """One stage.

    Attributes:
        stage: Its name in the family, such as "prior".
        checkpoint: A folder, the name of an embedded checkpoint, or a hub id.
        address: As of `Cascade.connect`; None for a stage that is to be run.
        fingerprint: Of the stage; None where any will do.
        also_accepts: Fingerprints of neighbours that are let through although they are not those
            that the checkpoint knows.
    """

    role: str
    stage: str
    checkpoint: str | None = None
    address: str | None = None
    fingerprint: str | None = None
    also_accepts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The stages of a cascade."""

    stages: tuple[ManifestStage, ...]


def read_manifest(path: str | PathLike[str]) -> Manifest:
    """Reads a manifest.

    Raises:
        InvalidArgumentError: The file cannot be read, or what it says is not allowed; names the
            stage, the key, its value and what is.
    """
    file = Path(path)
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgumentError(f"{file} cannot be read: {error}") from error
    if content.get("format") != FORMAT:
        raise InvalidArgumentError(
            f"{file}: format: {content.get('format')!r} is not allowed; allowed: {FORMAT}"
        )
    stages = content.get("stages")
    if not isinstance(stages, list) or not stages:
        raise InvalidArgumentError(f"{file} has no [[stages]]")
    if unknown := sorted(content.keys() - {"format", "stages"}):
        raise InvalidArgumentError(f"{file}: {unknown[0]!r} is unknown; known: format, stages")
    return Manifest(
        tuple(
            _stage(entry, where=f"{file}: stages[{index}]", folder=file.parent)
            for index, entry in enumerate(stages)
        )
    )


def write_manifest(manifest: Manifest) -> str:
    """Writes a manifest as TOML, with a line for the address of each stage to fill in."""
    lines = [f"format = {FORMAT}"]
    for stage in manifest.stages:
        lines += ["", "[[stages]]", f"role = {_quoted(stage.role)}"]
        lines += [f"stage = {_quoted(stage.stage)}"]
        if stage.checkpoint is not None:
            lines += [f"checkpoint = {_quoted(stage.checkpoint)}"]
        if stage.fingerprint is not None:
            lines += [f"fingerprint = {_quoted(stage.fingerprint)}"]
        if stage.also_accepts:
            spaces = ", ".join(_quoted(space) for space in stage.also_accepts)
            lines += [f"also_accepts = [{spaces}]"]
        if stage.address is not None:
            lines += [f"address = {_quoted(stage.address)}"]
        else:
            lines += [
                '# address = "host:port"  # where it runs; without one it is run beside the caller'
            ]
    return "\n".join(lines) + "\n"


def _stage(entry: Any, *, where: str, folder: Path) -> ManifestStage:
    if not isinstance(entry, Mapping):
        raise InvalidArgumentError(f"{where} is no table")
    for key, value in entry.items():
        if key not in _KEYS:
            known = ", ".join(_KEYS)
            raise InvalidArgumentError(f"{where}: {key!r} is unknown; known: {known}")
        if key != "also_accepts" and not (isinstance(value, str) and value):
            raise InvalidArgumentError(f"{where}.{key}: {value!r} is not allowed; allowed: a text")
    if entry.get("role") not in ROLES:
        raise InvalidArgumentError(
            f"{where}.role: {entry.get('role')!r} is not allowed; allowed: {', '.join(ROLES)}"
        )
    if "address" not in entry and "checkpoint" not in entry:
        raise InvalidArgumentError(f"{where} has neither an address nor a checkpoint")
    accepted = entry.get("also_accepts", [])
    if not isinstance(accepted, list):
        raise InvalidArgumentError(
            f"{where}.also_accepts: {accepted!r} is not allowed; allowed: a list"
        )
    for key, value in (
        ("fingerprint", entry.get("fingerprint")),
        *(("also_accepts", a) for a in accepted),
    ):
        if value is not None and not (isinstance(value, str) and _FINGERPRINT.fullmatch(value)):
            raise InvalidArgumentError(
                f"{where}.{key}: {value!r} is not allowed; allowed: 64 hexadecimal digits"
            )
    checkpoint = entry.get("checkpoint")
    # Not `Path.is_dir`, which raises for names that no file can have.
    if checkpoint is not None and os.path.isdir(beside := folder / checkpoint):
        checkpoint = str(beside)
    return ManifestStage(
        role=entry["role"],
        stage=entry.get("stage", entry["role"]),
        checkpoint=checkpoint,
        address=entry.get("address"),
        fingerprint=entry.get("fingerprint"),
        also_accepts=tuple(accepted),
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # TOML's basic strings have JSON's escapes
