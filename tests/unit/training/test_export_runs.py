"""Runs become a checkpoint by their recipes; those that do not belong together are refused."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from carrara_models.checkpoints import stages_of
from carrara_models.training.errors import RecipeError
from carrara_models.training.export_runs import export_runs

LAYOUTS = {
    "latents": (["latents"], ["text-encoder", "generator", "decoder"]),
    "pixels": (["super-resolution", "pixels"], ["text-encoder", "generator", "super-res"]),
    "flow-pixels": (
        ["flow-pixels", "super-resolution"],
        ["text-encoder", "generator", "super-res"],
    ),
    "images": (["images", "prior"], ["text-encoder", "prior", "generator", "decoder"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_recipes_tell_the_layout_and_what_belongs_together(
    layout: str, runs: Any, tmp_path: Path
) -> None:
    names, stages = LAYOUTS[layout]
    export_runs(tmp_path, [runs.of(name) for name in names], defaults=["guidance_scale=1.5"])
    assert set(stages_of(tmp_path)) == set(stages)
    for recipe in (tmp_path / "recipes").iterdir():
        assert tomllib.loads(recipe.read_text())["part"]
    manifests = [json.loads(file.read_text()) for file in tmp_path.rglob("carrara.json")]
    assert {"guidance_scale": 1.5}.items() <= {
        name: value for each in manifests for name, value in each["defaults"].items()
    }.items()


def test_another_decoder_may_take_the_place_of_the_generators(runs: Any, tmp_path: Path) -> None:
    for name in ("autoencoder", "decoder"):
        export_runs(tmp_path / name, [runs.of("latents")], autoencoder=runs.of(name))
    weights = [
        (tmp_path / name / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
        for name in ("autoencoder", "decoder")
    ]
    assert weights[0] != weights[1]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["pixels"], {}, "a generator of pixels needs a run of 'super-resolution'"),
        (["images"], {}, "a generator behind a CLIP needs a run of 'prior'"),
        (["prior"], {}, "a checkpoint needs a run of 'generator'"),
        (["latents", "prior"], {}, "'prior', which has no place behind"),
        (["latents", "pixels"], {}, "are both runs of 'generator'"),
        (["latents", "text-encoder"], {}, "is a run of 'text-encoder': name those of generator"),
        (["latents"], {"defaults": ["size=3"]}, "size is unknown; known are num_inference_steps"),
        (["latents"], {"scheduler": "dpm"}, "scheduler is 'dpm'; known are ddpm"),
    ],
)
def test_what_does_not_belong_together_is_refused_before_anything_is_written(
    names: list[str], options: Any, message: str, runs: Any, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        export_runs(tmp_path / "out", [runs.of(name) for name in names], **options)
    assert not (tmp_path / "out").exists()


def test_parts_behind_different_encoders_are_refused(runs: Any, tmp_path: Path) -> None:
    other = tmp_path / "t5"
    runs.train("t5", other)
    runs.train("pixels", tmp_path / "base", f"text_encoder={other}")
    with pytest.raises(RecipeError, match="was trained behind text_encoder"):
        export_runs(tmp_path / "out", [tmp_path / "base", runs.of("super-resolution")])


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"run\.toml cannot be read"):
        export_runs(tmp_path / "out", [tmp_path])
