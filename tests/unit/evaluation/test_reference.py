import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from carrara_models.errors import CheckpointError, ContractError
from carrara_models.evaluation.features import Features, FeatureSpace
from carrara_models.evaluation.preprocessing import Preprocessing
from carrara_models.evaluation.reference import (
    DESCRIPTION,
    TENSORS,
    make_reference,
    read_reference,
    write_reference,
)

SPACE = FeatureSpace(
    name="drawn_clip",
    fingerprint="a" * 64,
    width=3,
    preprocessing=Preprocessing("square", 32, 32, "bicubic", (0.5, 0.4, 0.3), (0.25,) * 3),
)


def features(count=10, *, space=SPACE, seed=0):
    values = np.random.default_rng(seed).standard_normal((count, space.width))
    return Features(space, values.astype(np.float32))


@pytest.fixture
def written(tmp_path):
    reference = make_reference(features(), data="ten drawn scenes", keep=4)
    write_reference(reference, tmp_path / "reference")
    return tmp_path / "reference"


def test_a_reference_read_is_the_one_written(written):
    original = make_reference(features(), data="ten drawn scenes", keep=4)
    read = read_reference(written)
    assert (read.data, read.space, read.count) == ("ten drawn scenes", SPACE, 10)
    assert read.fingerprint == original.fingerprint
    assert (read.gaussian.mean == original.gaussian.mean).all()
    assert (read.gaussian.covariance == original.gaussian.covariance).all()
    assert (read.kept == features().values[:4]).all()


def test_the_description_tells_features_preparation_and_count(written):
    description = json.loads((written / DESCRIPTION).read_text())
    assert description["count"] == 10
    assert description["features"]["fingerprint"] == "a" * 64
    assert description["features"]["preprocessing"]["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"name": "inception"}, ["name inception", "name drawn_clip"]),
        ({"fingerprint": "b" * 64}, ["fingerprint " + "b" * 64, "fingerprint " + "a" * 64]),
        (
            {"preprocessing": replace(SPACE.preprocessing, size=40, crop=32)},
            ["size=40", "size=32"],
        ),
    ],
)
def test_pictures_of_another_space_are_refused_and_both_sides_named(change, differs):
    reference = make_reference(features(), data="ten drawn scenes")
    reference.require(features())
    with pytest.raises(ContractError) as raised:
        reference.require(features(space=replace(SPACE, **change)))
    ours, theirs = str(raised.value).split("; ")
    assert "the pictures: " in ours
    assert differs[0] in ours
    assert "the reference (ten drawn scenes)" in theirs
    assert differs[1] in theirs


def test_pictures_of_another_count_are_refused_and_both_counts_named():
    reference = make_reference(features(), data="ten drawn scenes")
    reference.require_count(len(features().values))
    with pytest.raises(ContractError, match=r"there are 9 pictures, .*drawn scenes\) is of 10\."):
        reference.require_count(9)


def test_files_that_do_not_belong_together_are_refused(written):
    tensors = load_file(written / TENSORS)
    save_file(tensors | {"mean": tensors["mean"] + 1}, written / TENSORS)
    with pytest.raises(CheckpointError, match="was written for sha256"):
        read_reference(written)


def test_missing_and_broken_files_are_refused(written):
    description = json.loads((written / DESCRIPTION).read_text())

    def describe(**changes):
        (written / DESCRIPTION).write_text(json.dumps(description | changes))

    describe(format=2)
    with pytest.raises(CheckpointError, match="has format 2; this version reads 1"):
        read_reference(written)
    for broken in ({"features": {}}, {"count": None}, {"features": {"preprocessing": 1}}):
        describe(**broken)
        with pytest.raises(CheckpointError, match="holds no reference statistics"):
            read_reference(written)
    describe(features=description["features"] | {"width": 4})
    with pytest.raises(CheckpointError, match="for features of width 4"):
        read_reference(written)
    describe()
    (written / TENSORS).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="holds no reference statistics"):
        read_reference(written)
    (written / TENSORS).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        read_reference(written)
