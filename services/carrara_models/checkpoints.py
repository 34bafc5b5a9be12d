"""Finds a checkpoint by name, checks it, and loads single components from it; safetensors only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carrara_models.cascade_folders import CASCADE, CascadeStage, read_cascade
from carrara_models.embedded import embedded_folder, embedded_names
from carrara_models.errors import CheckpointError
from carrara_models.families import FAMILIES, Family, PartPlan, argument_prefix
from carrara_models.fingerprints import component_fingerprint, stage_fingerprint
from carrara_models.rgb_projection import RGB_PROJECTION, RgbProjection, read_projection
from carrara_models.weights import has_weights, read_json, weight_files

MANIFEST = "carrara.json"
MANIFEST_FORMAT = 1
ALL_COMPONENTS = sorted({name for family in FAMILIES.values() for name in family.components})


@dataclass(frozen=True)
class Defaults:
    """Settings that the checkpoint's makers chose, from `carrara.json`; None where they did not.

    There, those of a stage with a name of its own have it as their prefix: `prior_guidance_scale`.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    height: int | None = None
    width: int | None = None
    noise_level: int | None = None
    clean_caption: bool | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A folder in diffusers layout, opened for one part.

    Attributes:
        name: As the operator gave it.
        stage: Name of the part in its family.
        index: Components that `model_index.json` names, with the class of each.
        options: What else `model_index.json` says: the pipeline's own settings.
        fingerprints: Of every component that is known: computed where the weights are here, else as
            recorded in `carrara.json`. In a cascade folder, of its siblings' components too.
        variant: Which weight files are read, such as "fp16"; None for the plain ones.
        rgb_projection: From `carrara.json`; None where nobody has fitted one.
    """

    name: str
    path: Path
    stage: str
    pipeline_class: str
    family: Family
    index: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    variant: str | None = None
    rgb_projection: RgbProjection | None = None

    @property
    def plan(self) -> PartPlan:
        """How the part is loaded."""
        return self.family.parts[self.stage]

    def has(self, component: str) -> bool:
        """Whether the component can be loaded from the folder; its config alone is not enough."""
        return _is_present(self.path / component, self.variant)

    def config(self, component: str) -> dict[str, Any] | None:
        """The component's `config.json`, which may be here without the weights; else None."""
        path = self.path / component / "config.json"
        return read_json(path) if path.is_file() else None

    @property
    def components(self) -> tuple[str, ...]:
        """Those that the part loads; a family may do without some of its plan's."""
        return tuple(name for name in self.plan.components if name in self.index)

    @property
    def fingerprint(self) -> str:
        """Of the stage that serves this part: over its components, in the order of their names."""
        return stage_fingerprint({name: self.fingerprints[name] for name in self.components})

    def space(self, component: str) -> str:
        """Fingerprint of the component that defines what numbers mean; "" where it is unknown."""
        return self.fingerprints.get(component, "")

    @property
    def conditioning_space(self) -> str:
        """Fingerprint of the text encoder, or of several together; "" where one is unknown.

        Where the index leaves it out, it is the one that a sibling brings.
        """
        names = [name for name in self.index if name.startswith("text_encoder")]
        names = names or [name for name in self.fingerprints if name.startswith("text_encoder")]
        known = {name: self.space(name) for name in sorted(names)}
        if not all(known.values()):
            return ""
        return next(iter(known.values()), "") if len(known) < 2 else stage_fingerprint(known)


def resolve(
    name_or_folder: str | Path,
    *,
    components: Iterable[str] | None = None,
    variant: str | None = None,
) -> Path:
    """Finds the folder of a checkpoint or a cascade; downloads it if it is a hub id.

    Args:
        name_or_folder: A folder, the name of an embedded checkpoint, or a hub id (`owner/name`).
        components: Sub-folders whose weights are wanted from the hub; None = all. The JSON files of
            the others come too: they are small and say how the parts fit together.
        variant: Which weight files are wanted from the hub.

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot be downloaded.
    """
    folder = Path(name_or_folder).expanduser()
    if os.path.isdir(folder):  # not `Path.is_dir`, which raises for names that no file can have
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
    name_or_folder: str | Path, *, stage: str, variant: str | None = None
) -> Checkpoint:
    """Opens a checkpoint for one part and checks, before anything is loaded, that all is there.

    Of a cascade folder, the checkpoint that has the stage.

    Args:
        stage: Name of the part in its family: "text-encoder", "generator", "decoder", or one that
            only some families have, such as "prior".

    Raises:
        CheckpointError: It cannot be found, is of an unknown family, lacks what the part needs, or
            holds a broken file; the message names the file and says what to do.
    """
    found = resolve(name_or_folder, components=_needed_components(stage), variant=variant)
    cascade = read_cascade(found)
    if cascade and stage not in cascade:
        raise CheckpointError(
            f"{found} is a cascade without a stage {stage!r}; it has {', '.join(cascade)}."
        )
    path = cascade[stage].folder if cascade else found
    pipeline_class, index, options = read_index(path)
    family = family_of(pipeline_class, path)
    if stage not in family.parts:
        raise CheckpointError(
            f"{path} is a {pipeline_class}, which has no stage {stage!r}; "
            f"it has {', '.join(family.parts)}."
        )
    _check_part(path, index, family, stage, variant)
    manifest = read_manifest(path)
    checkpoint = Checkpoint(
        name=str(name_or_folder),
        path=path,
        stage=stage,
        pipeline_class=pipeline_class,
        family=family,
        index=index,
        options=options,
        defaults=_defaults(manifest, path, family=family, stage=stage),
        fingerprints=_of_siblings(cascade, path, variant=variant)
        | known_fingerprints(path, index=index, family=family, variant=variant),
        variant=variant,
        rgb_projection=read_projection(manifest.get(RGB_PROJECTION), file=path / MANIFEST),
    )
    wanted = cascade[stage].fingerprint if cascade else None
    if wanted not in (None, checkpoint.fingerprint):
        raise CheckpointError(
            f"{path}: the {stage} has the fingerprint {checkpoint.fingerprint}; "
            f"{found / CASCADE} was written for {wanted}."
        )
    return checkpoint


def stages_of(name_or_folder: str | Path) -> dict[str, PartPlan]:
    """Tells which stages serve a checkpoint, from its `model_index.json` alone.

    Stages whose components the index leaves out, as `null`, are not among them: a checkpoint may
    rely on another one's text encoder. Of a cascade folder, those that its `cascade.toml` names.

    Raises:
        CheckpointError: It cannot be found, is of an unknown family, or a cascade names a stage
            that its checkpoint does not have.
    """
    path = resolve(name_or_folder, components=())
    cascade = read_cascade(path)
    if not cascade:
        return _stages_in(path)
    stages = {}
    for name, stage in cascade.items():
        there = _stages_in(stage.folder)
        if name not in there or there[name].role != stage.role:
            have = ", ".join(f"the {plan.role} {each!r}" for each, plan in there.items())
            raise CheckpointError(
                f"{path / CASCADE} names the {stage.role} {name!r} of {stage.folder}, which has "
                f"{have or 'no stage'}."
            )
        stages[name] = there[name]
    return stages


def stage_of_role(name_or_folder: str | Path, role: str) -> str:
    """The stage that a role stands for: the one that is called so, else the only one of the role.

    Raises:
        CheckpointError: As `stages_of`.
    """
    stages = [stage for stage, plan in stages_of(name_or_folder).items() if plan.role == role]
    return stages[0] if len(stages) == 1 else role


def _stages_in(path: Path) -> dict[str, PartPlan]:
    pipeline_class, index, _ = read_index(path)
    return {
        stage: plan
        for stage, plan in family_of(pipeline_class, path).parts.items()
        if all(component in index for component in plan.components.keys() - plan.optional)
    }


def stages_of_all(names_or_folders: Sequence[str | Path]) -> list[tuple[str, str]]:
    """Tells which stages serve checkpoints that make one cascade.

    Returns:
        Checkpoint and stage, in order. A text encoder whose weights another checkpoint has brought
        already is left out.

    Raises:
        CheckpointError: As `stages_of`; or, of several checkpoints, a text encoder is incomplete.
    """
    stages: list[tuple[str, str]] = []
    known: set[str] = set()
    for name in names_or_folders:
        for stage, plan in stages_of(name).items():
            if plan.role == "text-encoder" and len(names_or_folders) > 1:
                space = open_checkpoint(name, stage=stage).conditioning_space
                if space in known:
                    continue
                known.add(space)
            stages.append((str(name), stage))
    return stages


def read_index(path: Path) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Reads `model_index.json`: the pipeline's class, the components' classes, and its settings."""
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
    options = {
        name: value
        for name, value in content.items()
        if name not in entries and not name.startswith("_")
    }
    return pipeline_class, index, options


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


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> Path:
    """Writes a folder's `carrara.json`, in place of the one that may be there.

    Raises:
        OSError: It cannot be written.
    """
    text = json.dumps(manifest, indent=2)
    # A colour of a projection stands on one line.
    text = re.sub(r"\[\s+([^][\s]+)\s+([^][\s]+)\s+([^][\s]+)\s+\]", r"[\1 \2 \3]", text)
    # A new file: what was there may be a link, as in a hub's cache, to what others share.
    file = path / MANIFEST
    new = file.with_suffix(".json.new")
    new.write_text(text + "\n", encoding="utf-8")
    os.replace(new, file)
    return file


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


def _of_siblings(
    cascade: Mapping[str, CascadeStage], path: Path, *, variant: str | None
) -> dict[str, str]:
    """Fingerprints of what the other checkpoints of a cascade folder hold.

    By them a stage knows its neighbours, as it does inside a checkpoint.
    """
    known: dict[str, str] = {}
    for folder in {stage.folder for stage in cascade.values()} - {path}:
        pipeline_class, index, _ = read_index(folder)
        family = family_of(pipeline_class, folder)
        known |= known_fingerprints(folder, index=index, family=family, variant=variant)
    return known


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
    return model.eval()  # gradients stay possible as in pipelines: float16 kernels depend on it


def _needed_components(stage: str) -> set[str]:
    """What the stage needs in any family; which one it is, is not known before a file is here."""
    return {
        name
        for family in FAMILIES.values()
        if stage in family.parts
        for name in family.parts[stage].components
    }


def _is_present(folder: Path, variant: str | None) -> bool:
    if not folder.is_dir():
        return False
    holds_tokens = (folder / "tokenizer_config.json").is_file() or (folder / "vocab.json").is_file()
    is_scheduler = (folder / "scheduler_config.json").is_file()
    return holds_tokens or is_scheduler or has_weights(folder, variant=variant)


def _check_part(
    path: Path, index: Mapping[str, str], family: Family, stage: str, variant: str | None
) -> None:
    plan = family.parts[stage]
    for component, classes in plan.components.items():
        if component not in index:
            if component in plan.optional:
                continue
            raise CheckpointError(f"{path / 'model_index.json'} names no {component}.")
        if index[component] not in classes:
            raise CheckpointError(
                f"{path}: {component} is a {index[component]}; allowed: {', '.join(classes)}. "
                "Code from checkpoints is never run."
            )
        folder = path / component
        if not folder.is_dir():
            stages = [
                name
                for name, other in family.parts.items()
                if _holds_part(path, other.components.keys() - other.optional)
            ]
            holds = (
                f"it is the folder of the {' and '.join(stages)}" if stages else "it is incomplete"
            )
            raise CheckpointError(f"{path} has no {component}/, which its {stage} needs: {holds}.")
        if not component.startswith("tokenizer") and not component.endswith("scheduler"):
            read_json(folder / "config.json")
            weight_files(folder, variant=variant)


def _holds_part(path: Path, components: Iterable[str]) -> bool:
    return all((path / component).is_dir() for component in components)


def _defaults(manifest: Mapping[str, Any], path: Path, *, family: Family, stage: str) -> Defaults:
    kinds: dict[str, tuple[type, ...]] = {
        "num_inference_steps": (int,),
        "guidance_scale": (int, float),
        "scheduler": (str,),
        "height": (int,),
        "width": (int,),
        "noise_level": (int,),
        "clean_caption": (bool,),
    }
    prefixes = {name: argument_prefix(name) for name in family.parts}
    chosen = {}
    for written, value in manifest["defaults"].items():
        owner = max(
            (name for name, prefix in prefixes.items() if written.startswith(prefix)),
            key=lambda name: len(prefixes[name]),
            default="",
        )
        name = written.removeprefix(prefixes.get(owner, ""))
        if name not in kinds:
            raise CheckpointError(f"{path / MANIFEST}: unknown default {written!r}.")
        if type(value) not in kinds[name]:  # True is an int too
            raise CheckpointError(f"{path / MANIFEST}: defaults.{written} cannot be {value!r}.")
        if prefixes.get(owner, "") == prefixes[stage]:
            chosen[name] = value
    return Defaults(**chosen)


def _download(repository: str, *, components: Iterable[str] | None, variant: str | None) -> Path:
    # Imported here, so that a local checkpoint needs no hub. HF_HUB_OFFLINE is read by the library.
    from huggingface_hub import snapshot_download

    names = ALL_COMPONENTS if components is None else sorted(components)
    weights = [f"{name}/*{'.' + variant if variant else ''}*.safetensors" for name in names]
    vocabularies = [f"{name}/{pattern}" for name in names for pattern in ("*.txt", "*.model")]
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
