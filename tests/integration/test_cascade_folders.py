"""Cascade folders are taken wherever a checkpoint is, and those that ship by their names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from carrara import Cascade
from carrara.cli import run
from carrara.manifest import read_manifest
from families.cascade_folders import CASCADES, SHIPPED
from families.case import FamilyCase
from integration.in_process import served

TINY = [pytest.param(case, id=name) for name, case in CASCADES.items()]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def painted(case: FamilyCase, settings: str) -> np.ndarray:
    return case.oracle(case.folders, case.settings[settings])


def picture_of(checkpoint: str, settings: Mapping[str, Any]) -> np.ndarray:
    with Cascade.embedded(checkpoint) as cascade:
        result = cascade.generate(**settings)
    assert result.numerics == "exact"
    # The stages know their neighbours in the folder beside theirs.
    assert result.warnings == ()
    return np.asarray(result.images[0].image)


@pytest.mark.parametrize("case", TINY)
def test_a_cascade_folder_runs_in_this_process(case: FamilyCase) -> None:
    for name, settings in case.settings.items():
        np.testing.assert_array_equal(
            picture_of(str(case.folders[0]), settings), painted(case, name), err_msg=name
        )


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_runs_by_its_name(name: str) -> None:
    case = SHIPPED[name]
    np.testing.assert_array_equal(
        picture_of(name, case.settings["defaults"]), painted(case, "defaults")
    )


@pytest.mark.parametrize("case", TINY)
def test_its_manifest_runs_too_and_its_stages_can_be_written_anew(
    case: FamilyCase, tmp_path: Path
) -> None:
    (folder,) = case.folders
    with Cascade.load(folder / "cascade.toml") as cascade:
        result = cascade.generate(**case.settings["defaults"])
    np.testing.assert_array_equal(np.asarray(result.images[0].image), painted(case, "defaults"))

    written = tmp_path / "cascade.toml"
    assert run(["manifest", str(folder), "--output", str(written)]) == 0
    assert [stage.stage for stage in read_manifest(written).stages] == list(case.stages)
    with Cascade.load(written) as cascade:
        result = cascade.generate(**case.settings["defaults"])
    np.testing.assert_array_equal(np.asarray(result.images[0].image), painted(case, "defaults"))
    assert result.warnings == ()


async def test_a_service_without_a_stage_serves_the_only_one_of_its_role() -> None:
    """So that one compose file serves Stable Diffusion and IF."""
    (folder,) = CASCADES["pixel-cascade"].folders
    async with served("decoder", folder) as decoder:
        assert (await decoder.describe()).stage == "super-res"


@pytest.mark.slow
@pytest.mark.parametrize("case", TINY)
def test_up_starts_its_stages_and_the_command_line_paints_with_them(
    case: FamilyCase, tmp_path: Path
) -> None:
    output = tmp_path / "out.png"
    settings = dict(case.settings["defaults"])
    carrara = [sys.executable, "-c", "from carrara.cli import main; main()"]
    up = [*carrara, "up", "--checkpoint", str(case.folders[0]), "--num-threads", "1"]
    paint = ["generate", settings["prompt"], "--seed", str(settings["seed"]), "-o", str(output)]
    ended = subprocess.run(
        [*up, "--", *carrara, *paint], capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    assert "warning" not in ended.stderr
    for stage in case.stages:
        assert stage in ended.stderr, "a bar for each stage"
    with Image.open(output) as picture:
        np.testing.assert_array_equal(np.asarray(picture), painted(case, "defaults"))
