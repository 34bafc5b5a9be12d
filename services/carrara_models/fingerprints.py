"""Fingerprints: one SHA-256 per component, equal wherever config and weights are equal.

It covers the canonical config (without names of folders, versions and commits) and every tensor's
name, dtype, shape and bytes in the order of names. So it does not depend on how the weights are
sharded, and a component that two checkpoints share has one fingerprint. A text encoder's covers its
tokenizer's files too: they as much as the weights say what an embedding stands for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carrara_models.caches import default_cache
from carrara_models.weights import read_json, stored_tensors, weight_files

# What libraries write into a config that says nothing about the numbers.
PASSING_KEYS = frozenset(
    {
        "_name_or_path",
        "_commit_hash",
        "_diffusers_version",
        "transformers_version",
        "torch_dtype",
        "dtype",
    }
    | {"name_or_path", "special_tokens_map_file", "tokenizer_file", "tokenizer_class", "is_local"}
    | {"local_files_only"}
)
CHUNK_BYTES = 1 << 20


def component_fingerprint(path: Path, component: str, *, variant: str | None = None) -> str:
    """Fingerprints one component of a checkpoint folder.

    Weights are streamed; a component of unchanged size and time of change is not read again.

    Returns:
        64 hexadecimal digits.

    Raises:
        CheckpointError: A file is missing or broken.
    """
    folder = path / component
    if component.endswith("scheduler"):
        return _digest({"config": _canonical(read_json(folder / "scheduler_config.json"))})
    if component.startswith("tokenizer"):
        return _digest({"files": _tokenizer_files(folder)})

    parts: dict[str, Any] = {"config": _canonical(read_json(folder / "config.json"))}
    if component.startswith("text_encoder"):
        tokenizer = path / component.replace("text_encoder", "tokenizer")
        if tokenizer.is_dir():
            parts["tokenizer"] = _tokenizer_files(tokenizer)
    files = weight_files(folder, variant=variant)
    entry = _cache_entry(parts, files)
    if cached := _read_cache(entry):
        return cached
    parts["tensors"] = _tensors(files)
    fingerprint = _digest(parts)
    _write_cache(entry, fingerprint)
    return fingerprint


def stage_fingerprint(components: Mapping[str, str]) -> str:
    """Fingerprints a stage: a SHA-256 over its components' names and fingerprints."""
    return _digest({"components": dict(components)})


def _tensors(files: list[Path]) -> list[list[Any]]:
    stored = sorted((t for file in files for t in stored_tensors(file)), key=lambda t: t.name)
    listing = []
    for tensor in stored:
        digest = hashlib.sha256()
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            left = tensor.end - tensor.start
            while left:
                chunk = stream.read(min(left, CHUNK_BYTES))
                digest.update(chunk)
                left -= len(chunk)
        listing.append([tensor.name, tensor.dtype, list(tensor.shape), digest.hexdigest()])
    return listing


def _tokenizer_files(folder: Path) -> dict[str, Any]:
    """For each file, the digest of its canonical content if it is JSON, else of its bytes."""
    return {
        file.name: _digest(_canonical(read_json(file)))
        if file.suffix == ".json"
        else hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".")
    }


def _canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in PASSING_KEYS}


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _cache_entry(parts: Mapping[str, Any], files: list[Path]) -> Path:
    states = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    return default_cache() / "fingerprints" / _digest({"parts": parts, "files": states})


def _read_cache(entry: Path) -> str | None:
    try:
        fingerprint = entry.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return fingerprint if len(fingerprint) == 64 else None


def _write_cache(entry: Path, fingerprint: str) -> None:
    """Writes by way of a temporary file, as several stages may start at once."""
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=entry.parent, delete=False) as stream:
            stream.write(fingerprint)
        os.replace(stream.name, entry)
