from dataclasses import replace

import numpy as np
import pytest

from carrara_models.drawn_world.checker import ATTRIBUTES
from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.errors import BadFieldError, ContractError
from carrara_models.evaluation.attributes import held_out_captions, read_pictures, score_pictures
from carrara_models.evaluation.clip_features import load_clip
from carrara_models.evaluation.distances import clip_scores, fit_gaussian, frechet_distance
from carrara_models.evaluation.features import Features
from carrara_models.evaluation.measures import (
    measure_attributes,
    measure_clip_score,
    measure_fid,
    measure_kid,
    require_comparable,
)
from carrara_models.evaluation.reference import make_reference
from carrara_models.pixels import batch_to_uint8

CAPTIONS = ["a red circle", "a small blue square", "circle", "red red " * 20]


def pictures(count, *, seed, bright=256):
    return np.random.default_rng(seed).integers(0, bright, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network(clip_folder):
    return load_clip(clip_folder, name="drawn_clip")


@pytest.fixture(scope="module")
def reference(network):
    return make_reference(network.extract(pictures(24, seed=0)), data="noise")


def test_measures_are_named_after_their_features_and_tell_their_basis(network, reference):
    painted = network.extract(pictures(24, seed=1))
    fid, kid = measure_fid(painted, reference, resamples=10), measure_kid(painted, reference)
    assert (fid.key, kid.key) == ("fid_drawn_clip", "kid_drawn_clip")
    for measure in (fid, kid):
        assert measure.basis.space == network.space
        assert measure.basis.pictures == 24
        assert measure.basis.against == f"noise, 24 pictures (sha256 {reference.fingerprint})"
        assert measure.estimate.low < measure.estimate.value < measure.estimate.high
    expected = frechet_distance(fit_gaussian(painted.values), reference.gaussian)
    assert fid.estimate.value == pytest.approx(expected, rel=1e-9)


def test_other_pictures_are_further_away_than_alike_ones(network, reference):
    alike = network.extract(pictures(24, seed=1))
    dark = network.extract(pictures(24, seed=2, bright=64))
    for measure in (measure_fid, measure_kid):
        near, far = measure(alike, reference), measure(dark, reference)
        assert far.estimate.low > near.estimate.high, near.key


def test_few_pictures_get_kid_alone(network, reference):
    few = network.extract(pictures(8, seed=1))
    assert measure_kid(few, reference).key == "kid_drawn_clip"
    as_few = make_reference(network.extract(pictures(8, seed=0)), data="noise")
    with pytest.raises(BadFieldError, match="more than 8"):
        measure_fid(few, as_few)


def test_other_features_and_other_counts_than_the_references_are_refused(network, reference):
    painted = network.extract(pictures(24, seed=1))
    foreign = Features(replace(painted.space, name="inception"), painted.values)
    for measure in (measure_fid, measure_kid):
        with pytest.raises(ContractError, match=r"name inception; the reference \(noise\)"):
            measure(foreign, reference)
    fewer = network.extract(pictures(20, seed=1))
    with pytest.raises(ContractError, match="there are 20 pictures"):
        measure_fid(fewer, reference)
    assert measure_kid(fewer, reference).basis.pictures == 20


def test_the_clip_score_is_the_mean_over_pairs_and_tells_of_captions_that_were_cut(network):
    painted = network.extract(pictures(4, seed=1))
    measure = measure_clip_score(painted, CAPTIONS, network=network)
    expected = clip_scores(painted.values, network.read(CAPTIONS).values).mean()
    assert measure.key == "clip_score_drawn_clip"
    assert measure.estimate.value == pytest.approx(expected)
    assert measure.notes == ("1 of 4 captions were cut to the tokens that fit",)
    assert measure.floor is None
    assert measure_clip_score(painted, ["red"] * 4, network=network).notes == ()


def test_the_floor_of_the_clip_score_is_that_with_the_captions_of_others(network):
    painted = network.extract(pictures(4, seed=1))
    measure = measure_clip_score(painted, CAPTIONS, network=network, shift=1)
    moved = measure_clip_score(painted, [*CAPTIONS[1:], CAPTIONS[0]], network=network)
    assert measure.floor == pytest.approx(moved.estimate.value)


def test_attributes_are_shares_with_floors_and_compare_over_equal_scenes_alone():
    scenes, _ = held_out_captions(12, seed=0)
    drawn = batch_to_uint8(draw_scenes(scenes))
    measures = measure_attributes(read_pictures(drawn), scenes, shift=5)
    assert [measure.key for measure in measures] == list(ATTRIBUTES)
    assert {measure.estimate.value for measure in measures} == {1.0}
    floors = score_pictures(drawn, scenes[5:] + scenes[:5])
    assert {measure.key: measure.floor for measure in measures} == floors
    others, _ = held_out_captions(12, seed=1)
    with pytest.raises(ContractError, match="captions or scenes differs"):
        require_comparable([*measures, *measure_attributes(read_pictures(drawn), others)])


def test_a_clip_score_across_two_networks_or_without_a_caption_each_is_refused(network):
    painted = network.extract(pictures(4, seed=1))
    with pytest.raises(ContractError, match="4 pictures have 3 captions"):
        measure_clip_score(painted, CAPTIONS[:3], network=network)
    foreign = Features(replace(painted.space, fingerprint="0" * 64), painted.values)
    with pytest.raises(ContractError, match="fingerprint 0000"):
        measure_clip_score(foreign, CAPTIONS, network=network)


def test_numbers_of_one_key_compare_only_if_measured_alike(network, reference):
    painted = network.extract(pictures(24, seed=1))
    kid = measure_kid(painted, reference)
    require_comparable([kid, measure_kid(network.extract(pictures(24, seed=2)), reference)])
    require_comparable([kid, measure_clip_score(painted, ["red"] * 24, network=network)])
    other = make_reference(network.extract(pictures(24, seed=5)), data="other noise")
    for odd, message in (
        (
            measure_kid(painted, other),
            "reference, captions or scenes differs: other noise.* and noise",
        ),
        (
            measure_kid(network.extract(pictures(20, seed=1)), reference),
            "count of pictures differs: 20 and 24",
        ),
        (
            replace(kid, basis=replace(kid.basis, space=replace(network.space, width=9))),
            "width 9; another: width 8",
        ),
    ):
        with pytest.raises(ContractError, match=message):
            require_comparable([kid, odd])
