"""One small file repeats a run; what is wrong with it is told by name, before any training."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from carrara_models.training.commands import PARTS, app
from carrara_models.training.errors import RecipeError
from carrara_models.training.generator import GeneratorSettings
from carrara_models.training.run_files import build_settings, change, read_recipe, to_toml


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: Any) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    # As a box of lines.
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("part", PARTS)
def test_the_recipe_that_is_shown_is_taken_again(part: str, tmp_path: Path) -> None:
    shown = invoke(part, "--show").stdout
    assert tomllib.loads(shown)["part"] == part
    (tmp_path / "a.toml").write_text(shown)
    assert invoke(part, "--config", tmp_path / "a.toml", "--show").stdout == shown


def test_a_run_is_repeated_by_its_folder(
    runs: Any, assert_same_weights: Any, tmp_path: Path
) -> None:
    result = invoke(
        *("prior", "--config", runs.of("prior"), "--output", tmp_path),
        *("--workers", 0, "--log-every", 1, "--save-every", 2, "--sample-every", 4),
    )
    assert result.exit_code == 0, result.output
    assert_same_weights(runs.of("prior"), tmp_path)
    assert (tmp_path / "run.toml").read_text() == (runs.of("prior") / "run.toml").read_text()


def test_a_change_goes_before_the_file_and_a_file_before_the_default(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('part = "generator"\ntext_encoder = "t5"\n[loop]\nsteps = 7\nseed = 3\n')
    changed = change(read_recipe(file, part="generator"), ["loop.steps=9", "objective.target=flow"])
    changed = change(changed, ["objective.times=uniform", 'shape.widths=[8, "16"]'])
    settings = build_settings(GeneratorSettings, changed)
    assert (settings.loop.steps, settings.loop.seed, settings.loop.batch_size) == (9, 3, 24)
    assert settings.text_encoder == Path("t5")
    assert settings.objective.target == "flow"
    assert settings.shape.widths == (8, 16)


def test_of_other_data_the_drawn_worlds_defaults_are_forgotten() -> None:
    shown = invoke("autoencoder", "--set", "data.location=folder:pictures", "--show").stdout
    data = tomllib.loads(shown)["data"]
    assert data["location"] == "folder:pictures"
    assert "strokes" not in data
    assert data["max_aspect_ratio"] == math.inf
    assert "bounds" not in tomllib.loads(invoke("autoencoder", "--show").stdout)["data"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["loop.stepz=3"], "loop.stepz is unknown; known are steps, batch_size"),
        (["loop.steps=many"], "loop.steps: 'many': Input should be a valid integer"),
        (["loop=3"], "loop: 3 is no table"),
        (["steps.loop.x=3"], "steps is unknown"),
        (["shape.widths=wide"], "shape.widths: 'wide'"),
        (["objective.target=noise"], "objective.target: 'noise': Input should be 'epsilon'"),
        (["loop.steps"], "'loop.steps' is no assignment such as loop.steps=100"),
        (["data.location=zip:x"], "'zip:x' is no data set; known are drawn-world"),
        (["objective.target=flow"], "choose other objective.times"),
        ([], "behind a text_encoder or a clip, one of the two"),
        (["text_encoder=nowhere"], "nowhere holds no text_encoder/"),
        (["clip=runs/clip"], "behind a clip, latents are denoised: name an autoencoder too"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_told_by_name(
    changes: list[str], message: str, tmp_path: Path
) -> None:
    options = [part for each in changes for part in ("--set", each)]
    assert message in refusal("generator", "--output", tmp_path / "run", *options)


@pytest.mark.parametrize("part", ["generator", "super-resolution"])
def test_a_clip_of_few_tokens_tells_no_pixels(runs: Any, tmp_path: Path, part: str) -> None:
    """Before the first step, as it is seen when the first samples are painted."""
    behind = f"text_encoder={runs.of('text-encoder')}"
    told = refusal(part, "--output", tmp_path / "run", "--set", behind)
    assert "text_encoder takes 48 tokens; a denoiser of pixels is told captions of 77" in told
    assert "--set kind=t5" in told


def test_a_recipe_of_another_part_or_no_recipe_is_refused(runs: Any, tmp_path: Path) -> None:
    assert "part is 'prior'; this command trains 'generator'" in refusal(
        "generator", "--config", runs.of("prior"), "--output", tmp_path
    )
    assert "cannot be read" in refusal("generator", "--config", tmp_path / "nothing.toml")
    (tmp_path / "broken.toml").write_text("part = ")
    assert "cannot be read" in refusal("generator", "--config", tmp_path / "broken.toml")


def test_a_run_is_neither_overwritten_nor_resumed_with_another_recipe(
    runs: Any, tmp_path: Path
) -> None:
    folder = runs.of("prior")
    assert "holds a run: resume it" in refusal("prior", "--output", folder)
    assert "its own recipe" in refusal("prior", "--output", folder, "--resume", "--config", folder)
    assert "was made with" in refusal(
        "prior", "--output", folder, "--resume", "--set", "loop.seed=5", "--workers", 0
    )
    assert "cannot be read" in refusal("prior", "--output", tmp_path / "new", "--resume")


def test_infinity_and_paths_stand_in_a_recipe() -> None:
    with pytest.raises(RecipeError, match="'x' is no data set"):
        to_toml(build_settings(GeneratorSettings, {"data": {"location": "x"}}), part="generator")
    assert 'clip = "a/b"' in to_toml(
        build_settings(GeneratorSettings, {"clip": "a/b"}), part="generator"
    )


def test_runs_are_exported_from_the_command_line(runs: Any, tmp_path: Path) -> None:
    result = invoke("export", runs.of("latents"), "-o", tmp_path / "out", "--default", "height=16")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "model_index.json").exists()
    assert "needs a run of 'prior'" in refusal("export", runs.of("images"), "-o", tmp_path / "out")
