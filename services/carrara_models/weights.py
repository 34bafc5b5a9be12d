"""Finds and checks a component's files without loading them: JSON and safetensors headers."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carrara_models.errors import CheckpointError

STEMS = ("diffusion_pytorch_model", "model")  # diffusers' name for weight files, and transformers'
MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
ITEM_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where the bytes of one tensor lie.

    Attributes:
        dtype: In safetensors' words, such as "F32".
        start: Offset in the file.
        end: Offset in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: The file is missing, is no JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is broken: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is broken: it holds no JSON object.")
    return content


def has_weights(folder: Path, *, variant: str | None = None) -> bool:
    """Whether the component has weights of this variant, in one file or in several."""
    return _single(folder, variant) is not None or _shard_index(folder, variant) is not None


def weight_files(folder: Path, *, variant: str | None = None) -> list[Path]:
    """The safetensors files that hold a component's weights.

    Raises:
        CheckpointError: There are none, or one that the index names is missing.
    """
    if single := _single(folder, variant):
        return [single]
    if index := _shard_index(folder, variant):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise CheckpointError(f"{index} is broken: it has no weight_map of file names.")
        files = [folder / shard for shard in sorted(set(shards.values()))]
        for file in files:
            if file.parent != folder or not file.is_file():
                raise CheckpointError(f"{file} is missing; {index.name} names it.")
        return files
    raise CheckpointError(_why_no_weights(folder, variant))


def stored_tensors(file: Path) -> list[StoredTensor]:
    """Reads a safetensors header and holds it against the size of the file.

    Raises:
        CheckpointError: The file is truncated or its header lies.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (header_bytes,) = struct.unpack("<Q", stream.read(8))
            if header_bytes > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(header_bytes))
        header.pop("__metadata__", None)
        data = 8 + header_bytes
        tensors = [
            StoredTensor(
                name=name,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                file=file,
                start=data + entry["data_offsets"][0],
                end=data + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        ]
        for tensor in tensors:
            bits = math.prod(tensor.shape) * ITEM_BITS[tensor.dtype]
            if not data <= tensor.start <= tensor.end <= size:
                raise ValueError(f"{tensor.name} reaches beyond the end of the file")
            if 8 * (tensor.end - tensor.start) != bits:
                raise ValueError(f"{tensor.name} has another size than its shape says")
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        struct.error,
    ) as error:
        raise CheckpointError(f"{file} is broken or truncated: {error}") from error
    return tensors


def _single(folder: Path, variant: str | None) -> Path | None:
    infix = f".{variant}" if variant else ""
    candidates = (folder / f"{stem}{infix}.safetensors" for stem in STEMS)
    return next((file for file in candidates if file.is_file()), None)


def _shard_index(folder: Path, variant: str | None) -> Path | None:
    infix = f".{variant}" if variant else ""
    candidates = (folder / f"{stem}.safetensors.index{infix}.json" for stem in STEMS)
    return next((file for file in candidates if file.is_file()), None)


def _why_no_weights(folder: Path, variant: str | None) -> str:
    wanted = f"safetensors weights of variant {variant!r}" if variant else "safetensors weights"
    if others := sorted(file.name for file in folder.glob("*.safetensors")):
        return (
            f"{folder} has no {wanted}; it has {', '.join(others)}. Choose the variant by its name."
        )
    if pickled := sorted(file.name for file in folder.glob("*.bin")):
        return (
            f"{folder} has no {wanted}, only {', '.join(pickled)}, a pickle, which Carrara never "
            "loads because it can run code. Convert it once, where you trust it: load it with "
            "diffusers' or transformers' from_pretrained(..., use_safetensors=False) and write it "
            "with save_pretrained(...), which makes safetensors."
        )
    return f"{folder} has no {wanted}."
