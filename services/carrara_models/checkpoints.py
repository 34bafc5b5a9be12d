"""Finds a checkpoint by name, checks it, and loads single components from it; safetensors only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carrara_models.embedded import embedded_folder, embedded_names
from carrara_models.errors import CheckpointError
from carrara_models.families import FAMILIES, Family, Role
from carrara_models.fingerprints import component_fingerprint, stage_fingerprint
from carrara_models.weights import has_weights, read_json, weight_files

MANIFEST = "carrara.json"
MANIFEST_FORMAT = 1
ALL_COMPONENTS = sorted({name for family in FAMILIES.values() for name in family.components})


@dataclass(frozen=True)
class Defaults:
    """Settings that the checkpoint's makers chose, from `carrara.json`; None where they did not."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A folder in diffusers layout, opened for one part.

    Attributes:
        name: As the operator gave it.
        index: Components that `model_index.json` names, with the class of each.
        fingerprints: Of every component that is known: computed where the weights are here, else as
            recorded in `carrara.json`.
        variant: Which weight files are read, such as "fp16"; None for the plain ones.
    """

    name: str
    path: Path
    role: Role
    pipeline_class: str
    family: Family
    index: Mapping[str, str]
    defaults: Defaults = field(default_factory=Defaults)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    variant: str | None = None

    def has(self, component: str) -> bool:
        """Whether the component can be loaded from the folder; its config alone is not enough."""
        return _is_present(self.path / component, self.variant)

    def config(self, component: str) -> dict[str, Any] | None:
        """The component's `config.json`, which may be here without the weights; else None."""
        path = self.path / component / "config.json"
        return read_json(path) if path.is_file() else None

    @property
    def fingerprint(self) -> str:
        """Of the stage that serves this part: over its components, in the order of their names."""
        names = self.family.parts[self.role].components
        return stage_fingerprint({name: self.fingerprints[name] for name in names})


def resolve(
    name_or_folder: str | Path,
    *,
    components: Iterable[str] | None = None,
    variant: str | None = None,
) -> Path:
    """Finds a checkpoint's folder; downloads it if it is a hub id.

    Args:
        name_or_folder: A folder, the name of an embedded checkpoint, or a hub id (`owner/name`).
        components: Sub-folders whose weights are wanted from the hub; None = all. The JSON files of
            the others come too: they are small and say how the parts fit together.
        variant: Which weight files are wanted from the hub.

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot be downloaded.
    """
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder.resolve()
    name = str(name_or_folder)
    if name in embedded_names():
        return embedded_folder(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name, components=components, variant=variant)
    raise CheckpointError(
        f"No checkpoint {name!r}: it is neither a folder, nor a hub id (owner/name), nor an "
        f"embedded checkpoint ({_embedded()})."
    )


def open_checkpoint(
    name_or_folder: str | Path, *, role: Role, variant: str | None = None
) -> Checkpoint:
    """Opens a checkpoint for one part and checks, before anything is loaded, that all is there.

    Raises:
        CheckpointError: It cannot be found, is of an unknown family, lacks what the part needs, or
            holds a broken file; the message names the file and says what to do.
    """
    path = resolve(name_or_folder, components=_needed_components(role), variant=variant)
    pipeline_class, index = read_index(path)
    family = family_of(pipeline_class, path)
    _check_part(path, index, family, role, variant)
    manifest = read_manifest(path)
    return Checkpoint(
        name=str(name_or_folder),
        path=path,
        role=role,
        pipeline_class=pipeline_class,
        family=family,
        index=index,
        defaults=_defaults(manifest, path),
        fingerprints=known_fingerprints(path, index=index, family=family, variant=variant),
        variant=variant,
    )


def read_index(path: Path) -> tuple[str, dict[str, str]]:
    """Reads `model_index.json`: the pipeline's class, and the class of each component."""
    content = read_json(path / "model_index.json")
    pipeline_class = content.get("_class_name")
    if not isinstance(pipeline_class, str):
        raise CheckpointError(f"{path / 'model_index.json'} names no pipeline class (_class_name).")
    entries = {name: entry for name, entry in content.items() if isinstance(entry, list)}
    index: dict[str, str] = {}
    for name, entry in entries.items():
        if len(entry) != 2:
            raise CheckpointError(f"{path / 'model_index.json'}: {name} is not [library, class].")
        if isinstance(entry[1], str):  # [null, null] stands for a component that was left out
            index[name] = entry[1]
    return pipeline_class, index


def family_of(pipeline_class: str, path: Path) -> Family:
    """The row of the table of families for a class of pipeline."""
    if pipeline_class not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"{path} is a {pipeline_class}; Carrara serves: {known}.")
    return FAMILIES[pipeline_class]


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads `carrara.json`; an empty one if there is none."""
    file = path / MANIFEST
    if not file.is_file():
        return {"format": MANIFEST_FORMAT, "defaults": {}, "fingerprints": {}}
    manifest = read_json(file)
    if manifest.get("format") != MANIFEST_FORMAT:
        raise CheckpointError(
            f"{file} has format {manifest.get('format')!r}; this version reads {MANIFEST_FORMAT}."
        )
    for section in ("defaults", "fingerprints"):
        if not isinstance(manifest.setdefault(section, {}), dict):
            raise CheckpointError(f"{file}: {section} is not an object.")
    return manifest


def known_fingerprints(
    path: Path, *, index: Mapping[str, str], family: Family, variant: str | None = None
) -> dict[str, str]:
    """Fingerprints of a folder's components: computed where the weights are, else as recorded.

    Raises:
        CheckpointError: The folder relies on what `carrara.json` records of its siblings, and that
            file does not belong to the weights beside it.
    """
    recorded = dict(read_manifest(path)["fingerprints"])
    names = [name for name in family.components if name in index]
    present = [name for name in names if _is_present(path / name, variant)]
    computed = {name: component_fingerprint(path, name, variant=variant) for name in present}
    if len(present) < len(names):
        for name in present:
            if recorded.get(name, computed[name]) != computed[name]:
                raise CheckpointError(
                    f"{path / MANIFEST} was written for other weights than those in {path / name}; "
                    "make the folder again with `carrara prune`."
                )
    return recorded | computed


def load_component(checkpoint: Checkpoint, component: str, *, loader: Any, **options: Any) -> Any:
    """Loads one component's weights with diffusers or transformers, in inference mode.

    Args:
        loader: The class, whose `from_pretrained` is called.
        options: Passed on; the two libraries name the parameter of the dtype differently.

    Raises:
        CheckpointError: The weights do not match the config, or cannot be read.
    """
    folder = checkpoint.path / component
    try:
        model, info = loader.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            variant=checkpoint.variant,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # whatever a config may provoke in two large libraries
        raise CheckpointError(f"{folder} cannot be loaded as {loader.__name__}: {error}") from error
    # Both libraries fill in random numbers for what is missing, and only log it.
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the tensors that its config asks for, "
            f"{missing[0]} for one."
        )
    return model.eval().requires_grad_(False)


def _needed_components(role: Role) -> set[str]:
    """What the role needs in any family; the family is not known before the first file is here."""
    return {name for family in FAMILIES.values() for name in family.parts[role].components}


def _is_present(folder: Path, variant: str | None) -> bool:
    if not folder.is_dir():
        return False
    holds_tokens = (folder / "tokenizer_config.json").is_file() or (folder / "vocab.json").is_file()
    is_scheduler = (folder / "scheduler_config.json").is_file()
    return holds_tokens or is_scheduler or has_weights(folder, variant=variant)


def _check_part(
    path: Path, index: Mapping[str, str], family: Family, role: Role, variant: str | None
) -> None:
    for component, classes in family.parts[role].components.items():
        if component not in index:
            raise CheckpointError(f"{path / 'model_index.json'} names no {component}.")
        if index[component] not in classes:
            raise CheckpointError(
                f"{path}: {component} is a {index[component]}; allowed: {', '.join(classes)}. "
                "Code from checkpoints is never run."
            )
        folder = path / component
        if not folder.is_dir():
            stages = [r for r, plan in family.parts.items() if _holds_part(path, plan.components)]
            holds = (
                f"it is the folder of the {' and '.join(stages)}" if stages else "it is incomplete"
            )
            raise CheckpointError(f"{path} has no {component}/, which a {role} needs: {holds}.")
        if component not in ("tokenizer", "scheduler"):
            read_json(folder / "config.json")
            weight_files(folder, variant=variant)


def _holds_part(path: Path, components: Iterable[str]) -> bool:
    return all((path / component).is_dir() for component in components)


def _defaults(manifest: Mapping[str, Any], path: Path) -> Defaults:
    values = manifest["defaults"]
    kinds: dict[str, tuple[type, ...]] = {
        "num_inference_steps": (int,),
        "guidance_scale": (int, float),
        "scheduler": (str,),
        "height": (int,),
        "width": (int,),
    }
    for name, value in values.items():
        if name not in kinds:
            raise CheckpointError(f"{path / MANIFEST}: unknown default {name!r}.")
        if isinstance(value, bool) or not isinstance(value, kinds[name]):
            raise CheckpointError(f"{path / MANIFEST}: defaults.{name} cannot be {value!r}.")
    return Defaults(**values)


def _download(repository: str, *, components: Iterable[str] | None, variant: str | None) -> Path:
    # Imported here, so that a local checkpoint needs no hub. HF_HUB_OFFLINE is read by the library.
    from huggingface_hub import snapshot_download

    names = ALL_COMPONENTS if components is None else sorted(components)
    weights = [f"{name}/*{'.' + variant if variant else ''}*.safetensors" for name in names]
    vocabularies = [f"{name}/*.txt" for name in names]
    try:
        folder = snapshot_download(
            repository,
            allow_patterns=["*.json", *weights, *vocabularies],
            # Without a variant, those of any variant stay where they are: diffusers names the plain
            # files model.safetensors and model-00001-of-00002.safetensors, without a second dot.
            ignore_patterns=None if variant else ["*/*.*.safetensors"],
        )
    except Exception as error:  # the client lets the errors of its HTTP library through
        raise CheckpointError(
            f"{repository!r} is no folder and no embedded checkpoint ({_embedded()}), and as a hub "
            f"id it cannot be had: {error}"
        ) from error
    return Path(folder)


def _embedded() -> str:
    return ", ".join(embedded_names()) or "none is installed"
