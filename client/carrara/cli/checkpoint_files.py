"""What a checkpoint's JSON files say of it; no weights are opened and no torch is imported."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from carrara.exceptions import InvalidArgumentError
from carrara.manifest import read_manifest
from carrara.prompts import refusal

DEFAULT_CHECKPOINT = "drawn-latent"
CASCADE = "cascade.toml"  # of a folder that holds several checkpoints

# Components that no stage loads; what they would have done is not done.
NOT_LOADED = frozenset(
    {"safety_checker", "feature_extractor", "image_encoder", "image_processor", "watermarker"}
)
# But Kandinsky's text encoder looks once at a picture of zeros.
LOADED_AFTER_ALL = {"KandinskyV22PriorPipeline": frozenset({"image_encoder"})}

_WEIGHTS = ("*.safetensors", "*.bin")
_SHOWN_SETTINGS = (
    "sample_size",
    "in_channels",
    "latent_channels",
    "block_out_channels",
    "cross_attention_dim",
    "hidden_size",
    "num_hidden_layers",
    "scaling_factor",
    "prediction_type",
)


def describe_checkpoint(name_or_folder: str) -> dict[str, Any]:
    """Describes a checkpoint, or a cascade folder of several.

    Args:
        name_or_folder: A folder, or the name of one that ships with Carrara.

    Returns:
        What `carrara info --json` prints: `checkpoint`, `path`, `class_name`, `defaults` and
        `components`, each with `name`, `class_name`, `loaded`, `weight_files`, `bytes`,
        `fingerprint` and `settings`. A fingerprint is what `carrara.json` records, else None. Of a
        cascade folder `checkpoint`, `path`, `stages`, each with `role`, `stage`, `path` and
        `fingerprint`, and `checkpoints`, each as above.

    Raises:
        InvalidArgumentError: There is no such checkpoint, or a file of it cannot be read.
    """
    path = _find(name_or_folder)
    if not (path / CASCADE).is_file() or (path / "model_index.json").is_file():
        return _checkpoint(path, name=name_or_folder)
    stages = [
        {
            "role": stage.role,
            "stage": stage.stage,
            "path": str(path / str(stage.checkpoint)),
            "fingerprint": stage.fingerprint,
        }
        for stage in read_manifest(path / CASCADE).stages
    ]
    folders = [Path(folder) for folder in dict.fromkeys(str(stage["path"]) for stage in stages)]
    return {
        "checkpoint": name_or_folder,
        "path": str(path),
        "stages": stages,
        "checkpoints": [
            _checkpoint(folder, name=f"{name_or_folder}/{folder.name}") for folder in folders
        ],
    }


def _checkpoint(path: Path, *, name: str) -> dict[str, Any]:
    index = _read(path / "model_index.json")
    manifest = _read(path / "carrara.json") if (path / "carrara.json").is_file() else {}
    fingerprints = manifest.get("fingerprints", {})
    class_name = str(index.get("_class_name"))
    return {
        "checkpoint": name,
        "path": str(path),
        "class_name": index.get("_class_name"),
        "defaults": manifest.get("defaults", {}),
        "components": [
            _component(
                path / name,
                class_name=entry[1],
                fingerprint=fingerprints.get(name),
                loaded=name not in NOT_LOADED - LOADED_AFTER_ALL.get(class_name, frozenset()),
            )
            for name, entry in sorted(index.items())
            if isinstance(entry, list) and len(entry) == 2 and entry[1]
        ],
    }


def _find(name_or_folder: str) -> Path:
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder.resolve()
    models = find_spec("carrara_models")  # found, not imported
    shipped = [
        path.parent
        for root in (models.submodule_search_locations or () if models else ())
        for file in ("model_index.json", CASCADE)
        for path in sorted(Path(root, "embedded").glob(f"*/{file}"))
    ]
    for path in shipped:
        if path.name == name_or_folder:
            return path
    names = ", ".join(path.name for path in shipped) or "none is installed"
    raise refusal("checkpoint", name_or_folder, f"a folder, or one that ships ({names})")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InvalidArgumentError(f"{path} holds no JSON object")
    return content


def _component(
    folder: Path, *, class_name: str, fingerprint: str | None, loaded: bool
) -> dict[str, Any]:
    weights = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    configs = [folder / name for name in ("config.json", "scheduler_config.json")]
    config = next((_read(path) for path in configs if path.is_file()), {})
    return {
        "name": folder.name,
        "class_name": class_name,
        "loaded": loaded,
        "weight_files": [path.name for path in weights],
        "bytes": sum(path.stat().st_size for path in weights),
        "fingerprint": fingerprint,
        "settings": {name: config[name] for name in _SHOWN_SETTINGS if name in config},
    }
