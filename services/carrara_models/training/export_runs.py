"""Makes a checkpoint of finished runs: their recipes tell which layout, and what belongs together.

| runs | layout |
|---|---|
| a generator behind a text encoder and an autoencoder | Stable Diffusion |
| a generator behind a text encoder, and super-resolution | DeepFloyd IF |
| a generator behind a CLIP and an autoencoder, and a prior | Kandinsky 2.2 |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from carrara_models.denoising.schedulers import SCHEDULERS
from carrara_models.training.errors import RecipeError
from carrara_models.training.export import (
    DefaultSettings,
    PixelDefaults,
    UnclipDefaults,
    export_checkpoint,
    export_pixel_cascade,
    export_unclip_cascade,
)
from carrara_models.training.generator import GeneratorSettings
from carrara_models.training.prior import PriorSettings
from carrara_models.training.run_files import (
    RUN_FILE,
    build_settings,
    change,
    part_of,
    read_recipe,
)
from carrara_models.training.super_resolution import SuperResolutionSettings

Defaults = TypeVar("Defaults")
RECIPES = "recipes"


@dataclass(frozen=True)
class _Run:
    folder: Path
    settings: Any


def export_runs(
    output: Path,
    runs: Sequence[Path],
    *,
    autoencoder: Path | None = None,
    defaults: Sequence[str] = (),
    scheduler: str = "dpm++2m",
) -> None:
    """Writes the checkpoint, and the recipes of all its runs into `recipes/`.

    Args:
        output: Folder of the checkpoint; created, files of the same names are replaced.
        runs: Those of the table above, in any order. What they were trained behind is found by
            their recipes.
        autoencoder: In place of the one that the generator was trained behind, where its decoder
            was trained further.
        defaults: What a picture is painted with when a request does not say, such as
            "guidance_scale=3".
        scheduler: The sampler of DeepFloyd IF's two stages.

    Raises:
        RecipeError: The runs make no layout, or do not belong together; a name is unknown.
        FileNotFoundError: A run is not there, or not at its end.
    """
    if scheduler not in SCHEDULERS:
        raise RecipeError(f"scheduler is {scheduler!r}; known are {', '.join(SCHEDULERS)}")
    by_part = _read(runs)
    generator = _take(by_part, "generator", needed_by="a checkpoint")
    told: GeneratorSettings = generator.settings
    if told.clip is not None:
        prior = _take(by_part, "prior", needed_by="a generator behind a CLIP")
        _check_same("clip", generator, prior)
        _check_none_left(by_part, generator)
        export_unclip_cascade(
            output,
            clip_folder=told.clip,
            prior_folder=prior.folder,
            image_unet_folder=generator.folder,
            defaults=_defaults(UnclipDefaults, defaults),
        )
        others = {"clip": told.clip, "prior": prior.folder, "autoencoder": told.autoencoder}
    elif told.autoencoder is None:
        larger = _take(by_part, "super-resolution", needed_by="a generator of pixels")
        _check_same("text_encoder", generator, larger)
        _check_none_left(by_part, generator)
        assert told.text_encoder is not None
        export_pixel_cascade(
            output,
            text_encoder_folder=told.text_encoder,
            base_folder=generator.folder,
            super_resolution_folder=larger.folder,
            defaults=_defaults(PixelDefaults, defaults),
            scheduler=scheduler,
        )
        others = {"text-encoder": told.text_encoder, "super-resolution": larger.folder}
    else:
        _check_none_left(by_part, generator)
        assert told.text_encoder is not None
        vae = autoencoder or told.autoencoder
        export_checkpoint(
            output,
            text_encoder_folder=told.text_encoder,
            autoencoder_folder=vae,
            generator_folder=generator.folder,
            defaults=_defaults(DefaultSettings, defaults),
        )
        others = {"text-encoder": told.text_encoder, "autoencoder": vae}
    _copy_recipes(output, {"generator": generator.folder, **others})


SETTINGS: Mapping[str, type[Any]] = {
    "generator": GeneratorSettings,
    "prior": PriorSettings,
    "super-resolution": SuperResolutionSettings,
}


def _read(runs: Sequence[Path]) -> dict[str, _Run]:
    found: dict[str, _Run] = {}
    for folder in runs:
        part = part_of(folder)
        if part not in SETTINGS:
            raise RecipeError(
                f"{folder} is a run of {part!r}: name those of {', '.join(SETTINGS)}; what they "
                "were trained behind is found by their recipes"
            )
        if part in found:
            raise RecipeError(f"{found[part].folder} and {folder} are both runs of {part!r}")
        found[part] = _Run(folder, build_settings(SETTINGS[part], read_recipe(folder, part=part)))
    return found


def _take(by_part: dict[str, _Run], part: str, *, needed_by: str) -> _Run:
    if part not in by_part:
        raise RecipeError(f"{needed_by} needs a run of {part!r}: name its folder too")
    return by_part.pop(part)


def _check_none_left(by_part: Mapping[str, _Run], generator: _Run) -> None:
    for part, run in by_part.items():
        raise RecipeError(
            f"{run.folder} is a run of {part!r}, which has no place behind {generator.folder}"
        )


def _check_same(name: str, one: _Run, other: _Run) -> None:
    first, second = getattr(one.settings, name), getattr(other.settings, name)
    if first.resolve() != second.resolve():
        raise RecipeError(
            f"{one.folder} was trained behind {name} {first}, {other.folder} behind {second}"
        )


def _defaults(kind: type[Defaults], assignments: Sequence[str]) -> Defaults:
    return build_settings(kind, change({}, assignments))


def _copy_recipes(output: Path, folders: Mapping[str, Path | None]) -> None:
    """Each part's, where it was trained here; a part of somebody else's checkpoint has none."""
    (output / RECIPES).mkdir(exist_ok=True)
    for part, folder in folders.items():
        if folder is not None and (folder / RUN_FILE).exists():
            recipe = (folder / RUN_FILE).read_text(encoding="utf-8")
            (output / RECIPES / f"{part}.toml").write_text(recipe, encoding="utf-8")
