"""A cascade folder stands for the checkpoints in it, stage by stage."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest
import torch

from carrara_models import embedded
from carrara_models.cascade_folders import CascadeStage, read_cascade, write_cascade
from carrara_models.checkpoints import open_checkpoint, resolve, stage_of_role, stages_of
from carrara_models.errors import CheckpointError
from carrara_models.families import load_part
from carrara_models.pruning import prune
from families import CASES
from families.cascade_folders import CASCADES

STAGES = {
    "pixel-cascade": {
        "text-encoder": "base",
        "generator": "base",
        "super-res": "super-resolution",
    },
    "unclip-cascade": {
        "text-encoder": "prior",
        "prior": "prior",
        "generator": "decoder",
        "decoder": "decoder",
    },
}


@pytest.fixture
def pixel(tmp_path: Path) -> Path:
    return copytree(CASCADES["pixel-cascade"].folders[0], tmp_path / "pixel")


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_is_opened_from_the_folder_that_has_it(name: str) -> None:
    (folder,) = CASCADES[name].folders
    assert list(stages_of(folder)) == list(STAGES[name])
    for stage, inside in STAGES[name].items():
        checkpoint = open_checkpoint(folder, stage=stage)
        assert checkpoint.path == folder / inside
        assert checkpoint.name == str(folder)


def test_a_stage_knows_its_neighbours_in_other_folders_and_still_does_when_pruned(
    tmp_path: Path,
) -> None:
    for name, makes, takes, component in (
        ("pixel-cascade", "text-encoder", "super-res", "text_encoder"),
        ("unclip-cascade", "prior", "generator", "prior"),
    ):
        (folder,) = CASCADES[name].folders
        space = open_checkpoint(folder, stage=makes).fingerprints[component]
        whole = open_checkpoint(folder, stage=takes)
        pruned = open_checkpoint(prune(whole, output=tmp_path / name), stage=takes)
        alone = open_checkpoint(whole.path, stage=takes)
        consumed = [
            load_part(each, device=torch.device("cpu"), dtype=torch.float32).consumes[0].contract
            for each in (whole, pruned, alone)
        ]
        assert [contract.space for contract in consumed] == [space, space, ""]


def test_a_role_stands_for_its_only_stage_or_for_the_one_that_is_called_so() -> None:
    (pixel,), (unclip,) = (CASCADES[name].folders for name in STAGES)
    (karlo,) = CASES["unclip"].folders
    assert stage_of_role(pixel, "decoder") == "super-res"
    assert stage_of_role(unclip, "generator") == "generator"
    assert stage_of_role(unclip, "decoder") == "decoder"
    assert stage_of_role(karlo, "decoder") == "super-res"
    base = CASES["if"].folders[0]
    assert stage_of_role(base, "decoder") == "decoder"
    with pytest.raises(CheckpointError, match="no stage 'decoder'; it has text-encoder, generator"):
        open_checkpoint(base, stage=stage_of_role(base, "decoder"))


def test_an_embedded_cascade_is_found_by_its_name(
    pixel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "__file__", str(pixel.parent / "__init__.py"))
    assert embedded.embedded_names() == ("pixel",)
    assert resolve("pixel") == pixel
    assert open_checkpoint("pixel", stage="super-res").path == pixel / "super-resolution"


def test_a_stage_that_the_cascade_lacks_is_refused_with_those_it_has(pixel: Path) -> None:
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(pixel, stage="decoder")
    for word in (str(pixel), "'decoder'", "text-encoder, generator, super-res"):
        assert word in str(refusal.value)


def test_other_weights_than_the_cascade_names_are_refused(pixel: Path) -> None:
    stages = read_cascade(pixel)
    own = open_checkpoint(pixel, stage="super-res").fingerprint
    for fingerprint in (own, "9" * 64):
        folder = stages["super-res"].folder
        stages["super-res"] = CascadeStage("decoder", folder, fingerprint)
        write_cascade(pixel, stages)
        if fingerprint == own:
            assert open_checkpoint(pixel, stage="super-res").fingerprint == own
    with pytest.raises(CheckpointError, match=rf"super-res has the fingerprint {own}.*9{{64}}"):
        open_checkpoint(pixel, stage="super-res")


def test_a_checkpoint_with_a_manifest_in_it_is_still_a_checkpoint(pixel: Path) -> None:
    (pixel / "base" / "cascade.toml").write_text("no TOML")
    assert read_cascade(pixel / "base") == {}
    assert list(stages_of(pixel / "base")) == ["text-encoder", "generator"]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    stages = {
        "prior": CascadeStage("generator", tmp_path / "one", "5" * 64),
        "generator": CascadeStage("generator", tmp_path / "one"),
    }
    write_cascade(tmp_path, stages)
    assert read_cascade(tmp_path) == stages


STAGE = 'format = 1\n[[stages]]\nrole = "generator"\ncheckpoint = "base"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format = \n", ["cannot be read"]),
        ("format = 2\n", ["format 2", "reads 1"]),
        ("format = 1\n", ["[[stages]]"]),
        ("format = 1\nstages = [3]\n", ["stages[0]", "no table"]),
        ('format = 1\n[[stages]]\nrole = "generator"\n', ["stages[0]", "no checkpoint"]),
        (f"{STAGE}stage = 3\n", ["stages[0].stage", "3"]),
        (f'{STAGE}address = "a:1"\n', ["stages[0]", "'address'", "--cascade"]),
        (STAGE.replace("base", "owner/name"), ["no folder", "owner/name"]),
        (STAGE + STAGE.removeprefix("format = 1\n"), ["generator twice"]),
        (f'{STAGE}stage = "prior"\n', ["generator 'prior'", "base", "the text-encoder"]),
        (
            f'{STAGE}stage = "generator"\n'.replace('role = "generator"', 'role = "decoder"'),
            ["decoder 'generator'", "the generator 'generator'"],
        ),
    ],
)
def test_a_wrong_cascade_is_refused(pixel: Path, text: str, words: list[str]) -> None:
    (pixel / "cascade.toml").write_text(text)
    with pytest.raises(CheckpointError) as refusal:
        stages_of(pixel)
    for word in (str(pixel), *words):
        assert word in str(refusal.value)
