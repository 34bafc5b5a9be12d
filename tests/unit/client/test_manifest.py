from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrara.exceptions import InvalidArgumentError
from carrara.manifest import ROLES, Manifest, ManifestStage, read_manifest, write_manifest

FINGERPRINTS = st.text("0123456789abcdef", min_size=64, max_size=64)
WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(
    lambda text: not os.path.isdir(text)
)
STAGES = st.builds(
    ManifestStage,
    role=st.sampled_from(ROLES),
    stage=WORDS,
    checkpoint=WORDS,
    address=st.none() | WORDS,
    fingerprint=st.none() | FINGERPRINTS,
    also_accepts=st.lists(FINGERPRINTS, max_size=2).map(tuple),
)


@given(stages=st.lists(STAGES, min_size=1, max_size=4).map(tuple))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, stages: tuple[ManifestStage, ...]
) -> None:
    file = tmp_path_factory.mktemp("manifest") / "cascade.toml"
    file.write_text(write_manifest(Manifest(stages)), encoding="utf-8")
    assert read_manifest(file) == Manifest(stages)


def test_a_checkpoint_may_have_a_name_that_no_folder_can_have(tmp_path: Path) -> None:
    stages = (ManifestStage(role="decoder", stage="decoder", checkpoint="x" * 5000),)
    file = tmp_path / "cascade.toml"
    file.write_text(write_manifest(Manifest(stages)), encoding="utf-8")
    assert read_manifest(file) == Manifest(stages)


def read(folder: Path, text: str) -> Manifest:
    file = folder / "cascade.toml"
    file.write_text(text, encoding="utf-8")
    return read_manifest(file)


def test_a_stage_is_called_as_its_role_where_it_has_no_name(tmp_path: Path) -> None:
    manifest = read(tmp_path, 'format = 1\n[[stages]]\nrole = "decoder"\naddress = "a:1"\n')
    assert manifest.stages == (ManifestStage(role="decoder", stage="decoder", address="a:1"),)


def test_a_checkpoint_beside_the_file_is_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "karlo").mkdir()
    entries = "".join(
        f'[[stages]]\nrole = "generator"\ncheckpoint = "{name}"\n'
        for name in ("./karlo", "drawn-latent", "owner/name")
    )
    stages = read(tmp_path, f"format = 1\n{entries}").stages
    assert [stage.checkpoint for stage in stages] == [
        str(tmp_path / "karlo"),
        "drawn-latent",
        "owner/name",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format = 2\n", ["format", "2", "1"]),
        ("format = 1\n", ["[[stages]]"]),
        ("format = 1\nstages = 3\n", ["[[stages]]"]),
        ("format = 1\nstages = [3]\n", ["stages[0]"]),
        ("format = \n", ["cannot be read"]),
        ('format = 1\nname = "x"\n[[stages]]\nrole = "decoder"\naddress = "a:1"\n', ["name"]),
        ('format = 1\n[[stages]]\nrole = "prior"\naddress = "a:1"\n', ["stages[0].role", "prior"]),
        ('format = 1\n[[stages]]\nrole = "decoder"\n', ["stages[0]", "address", "checkpoint"]),
        (
            'format = 1\n[[stages]]\nrole = "decoder"\naddress = "a:1"\nport = 1\n',
            ["stages[0]", "port", "fingerprint"],
        ),
        ('format = 1\n[[stages]]\nrole = "decoder"\naddress = 7\n', ["stages[0].address", "7"]),
        (
            'format = 1\n[[stages]]\nrole = "decoder"\naddress = "a:1"\nfingerprint = "abc"\n',
            ["stages[0].fingerprint", "abc", "64"],
        ),
        (
            'format = 1\n[[stages]]\nrole = "decoder"\naddress = "a:1"\nalso_accepts = "f"\n',
            ["stages[0].also_accepts", "a list"],
        ),
        (
            'format = 1\n[[stages]]\nrole = "decoder"\naddress = "a:1"\nalso_accepts = ["f"]\n',
            ["stages[0].also_accepts", "64"],
        ),
    ],
)
def test_a_manifest_that_says_something_else_is_refused_by_stage_and_key(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        read(tmp_path, text)
    for word in (str(tmp_path / "cascade.toml"), *words):
        assert word in str(refusal.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        read_manifest(tmp_path / "nothing.toml")
