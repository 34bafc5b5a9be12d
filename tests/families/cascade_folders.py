"""Checkpoints that one name or folder stands for: tiny cascade folders, and those that ship."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from shutil import copytree

import numpy as np

from carrara_models.cascade_folders import CascadeStage, read_cascade, write_cascade
from carrara_models.checkpoints import read_index, read_manifest, stages_of
from carrara_models.embedded import embedded_folder, embedded_names
from carrara_models.families import STAGE_ROLES
from families import deepfloyd_if, kandinsky, stable_diffusion
from families.case import FamilyCase, Settings

# By the classes of pipelines that a folder's checkpoints are for.
LATENT = ("StableDiffusionPipeline",)
PIXEL = ("IFPipeline", "IFSuperResolutionPipeline")
UNCLIP = ("KandinskyV22PriorPipeline", "KandinskyV22Pipeline")
LIKE = {LATENT: stable_diffusion.CASE, PIXEL: deepfloyd_if.CASE, UNCLIP: kandinsky.CASE}

RED = "a large red circle on a white background"
BLUE = "a small blue square on a black background"
GREEN = "a green star in the middle on a yellow background"

# Of real size, so that few steps must do; "defaults" has those of its `carrara.json`.
SHIPPED_SETTINGS: Mapping[tuple[str, ...], Mapping[str, Settings]] = {
    LATENT: {
        "defaults": {"prompt": RED, "seed": 2},
        "guided": {"prompt": RED, "seed": 3, "num_inference_steps": 4, "guidance_scale": 3.0},
        "sampler": {
            "prompt": BLUE,
            "negative_prompt": "red",
            "seed": 2**40 + 1,
            "num_inference_steps": 5,
            "guidance_scale": 2.0,
            "scheduler": "ddim",
        },
        "unguided": {"prompt": GREEN, "seed": 5, "num_inference_steps": 3, "guidance_scale": 1.0},
    },
    PIXEL: {
        "defaults": {"prompt": RED, "seed": 2},
        "guided": {
            "prompt": RED,
            "seed": 3,
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            "super_res_num_inference_steps": 2,
            "super_res_guidance_scale": 2.0,
            "super_res_noise_level": 20,
        },
        "samplers": {
            "prompt": BLUE,
            "negative_prompt": "red",
            "seed": 2**40 + 1,
            "num_inference_steps": 5,
            "guidance_scale": 2.0,
            "scheduler": "ddpm",
            "super_res_num_inference_steps": 3,
            "super_res_guidance_scale": 1.0,
            "super_res_scheduler": "ddpm",
        },
        "unguided": {
            "prompt": GREEN,
            "seed": 5,
            "num_inference_steps": 3,
            "guidance_scale": 1.0,
            "super_res_num_inference_steps": 2,
            "super_res_guidance_scale": 1.0,
            "super_res_noise_level": 0,
            "super_res_height": 64,
            "super_res_width": 96,
        },
    },
    UNCLIP: {
        "defaults": {"prompt": RED, "seed": 2},
        "guided": {
            "prompt": RED,
            "seed": 3,
            "prior_num_inference_steps": 4,
            "prior_guidance_scale": 2.0,
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
        },
        "sampler": {
            "prompt": BLUE,
            "negative_prompt": "red",
            "seed": 2**40 + 1,
            "prior_num_inference_steps": 3,
            "prior_guidance_scale": 3.0,
            "num_inference_steps": 5,
            "guidance_scale": 2.0,
            "scheduler": "ddpm",
        },
        "unguided": {
            "prompt": GREEN,
            "seed": 5,
            "prior_num_inference_steps": 3,
            "prior_guidance_scale": 1.0,
            "num_inference_steps": 3,
            "guidance_scale": 1.0,
        },
    },
}


def checkpoint_folders(folder: Path) -> tuple[Path, ...]:
    """The folders in diffusers layout, in the order of the image's way; one is its own."""
    folders = [stage.folder for stage in read_cascade(folder).values()]
    return tuple(dict.fromkeys(folders)) or (folder,)


def layout_of(folder: Path) -> tuple[str, ...]:
    return tuple(read_index(each)[0] for each in checkpoint_folders(folder))


def defaults_of(folder: Path) -> dict[str, object]:
    """What the `carrara.json` of each checkpoint says of settings."""
    return {
        name: value
        for each in checkpoint_folders(folder)
        for name, value in read_manifest(each)["defaults"].items()
    }


def paint(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    """By the pipelines of the folder's checkpoints, told of the defaults in `carrara.json`."""
    [folder] = folders
    oracle = LIKE[layout_of(folder)].oracle
    return oracle(checkpoint_folders(folder), defaults_of(folder) | dict(settings))


def write_pixel_cascade(folder: Path) -> None:
    """A text encoder lies in the base alone, as many store IF's super-resolution."""
    for name, write in (
        ("base", deepfloyd_if.write_base),
        ("super-resolution", partial(deepfloyd_if.write_super_resolution, has_text_encoder=False)),
    ):
        (folder / name).mkdir()
        write(folder / name)
    _write_defaults(folder / "base", num_inference_steps=3, guidance_scale=4, clean_caption=False)
    _write_defaults(
        folder / "super-resolution",
        super_res_num_inference_steps=2,
        super_res_guidance_scale=1.5,
        super_res_noise_level=300,
    )
    _write_cascade(folder, ["base", "super-resolution"])


def write_unclip_cascade(folder: Path) -> None:
    for name, write in (
        ("prior", kandinsky.write_prior_checkpoint),
        ("decoder", partial(kandinsky.write_decoder_checkpoint, variance_type="fixed_small")),
    ):
        (folder / name).mkdir()
        write(folder / name)
    _write_defaults(folder / "prior", prior_num_inference_steps=3, prior_guidance_scale=2.5)
    _write_defaults(
        folder / "decoder", num_inference_steps=2, guidance_scale=3.0, height=64, width=48
    )
    _write_cascade(folder, ["prior", "decoder"])


def _write_defaults(folder: Path, **defaults: object) -> None:
    (folder / "carrara.json").write_text(json.dumps({"format": 1, "defaults": defaults}))


def _write_cascade(folder: Path, names: Sequence[str]) -> None:
    write_cascade(
        folder,
        {
            stage: CascadeStage(STAGE_ROLES[stage], folder / name)
            for name in names
            for stage in stages_of(folder / name)
        },
    )


CASCADES: dict[str, FamilyCase] = {
    name: FamilyCase(
        name=name,
        checkpoints=(write,),
        oracle=paint,
        settings={"defaults": {"prompt": RED, "seed": 2}}
        | {each: LIKE[layout].settings[each] for each in names},
        stages=LIKE[layout].stages,
    )
    for name, write, layout, names in (
        ("pixel-cascade", write_pixel_cascade, PIXEL, ("plain", "noise-and-guidance", "unguided")),
        ("unclip-cascade", write_unclip_cascade, UNCLIP, ("absent-negative", "negative")),
    )
}

# As many as there are: a checkpoint is tested as soon as it ships.
SHIPPED: dict[str, FamilyCase] = {
    name: FamilyCase(
        name=name,
        checkpoints=(partial(copytree, embedded_folder(name), dirs_exist_ok=True),),
        oracle=paint,
        settings=SHIPPED_SETTINGS[layout_of(embedded_folder(name))],
        stages=LIKE[layout_of(embedded_folder(name))].stages,
    )
    for name in embedded_names()
}

IN_ONE_FOLDER = {**CASCADES, **SHIPPED}
