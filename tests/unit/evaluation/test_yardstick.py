from dataclasses import replace

import numpy as np
import pytest

from carrara_models.errors import BadFieldError, ContractError
from carrara_models.evaluation.attributes import CaptionKind
from carrara_models.evaluation.caption_sets import CaptionSet, drawn_captions
from carrara_models.evaluation.clip_features import load_clip
from carrara_models.evaluation.features import FeatureSpace
from carrara_models.evaluation.yardstick import Wanted, Yardstick, reference_of

ALL = Wanted(attributes=True, fid=True, kid=True, clip_score=True)
DRAWN = drawn_captions(24, seed=0, kind=CaptionKind())


@pytest.fixture(scope="module")
def network(clip_folder):
    return load_clip(clip_folder, name="drawn_clip")


def by_key(measures):
    return {measure.key: measure for measure in measures}


def test_true_pictures_reach_the_ceiling_of_every_measure(network):
    yardstick = Yardstick(DRAWN, ALL, network=network, resamples=5)
    yardstick.prepare(64, 64)
    found = by_key(yardstick.measure(DRAWN.draw_true(64, 64)))
    assert list(found)[-3:] == ["fid_drawn_clip", "kid_drawn_clip", "clip_score_drawn_clip"]
    for measure in found.values():
        assert measure.estimate.value == measure.ceiling
    assert found["all_right"].ceiling == 1
    assert found["all_right"].floor < 0.2
    assert found["clip_score_drawn_clip"].floor is not None
    assert found["fid_drawn_clip"].floor is None
    grey = np.full((24, 64, 64, 3), 128, dtype=np.uint8)
    worse = by_key(yardstick.measure(grey))
    assert worse["fid_drawn_clip"].estimate.value > worse["fid_drawn_clip"].ceiling
    assert worse["all_right"].estimate.value == 0


def test_the_ceiling_is_of_what_comes_back_of_true_pictures():
    yardstick = Yardstick(DRAWN, Wanted(attributes=True), rebuild=np.zeros_like)
    yardstick.prepare(64, 64)
    assert {m.ceiling for m in yardstick.measure(DRAWN.draw_true(64, 64))[1:]} == {0.0}


def test_a_folder_that_is_its_own_reference_has_no_distance_for_a_ceiling(network):
    own = replace(DRAWN, draw_reference=DRAWN.draw_true)
    yardstick = Yardstick(own, ALL, network=network, resamples=2)
    yardstick.prepare(64, 64)
    found = by_key(yardstick.measure(DRAWN.draw_true(64, 64)))
    assert found["fid_drawn_clip"].ceiling is None
    assert found["fid_drawn_clip"].estimate.value == pytest.approx(0, abs=1e-3)
    assert found["clip_score_drawn_clip"].ceiling is not None


def test_a_reference_of_other_features_or_counts_is_refused_before_anything_is_painted(network):
    reference = reference_of(DRAWN, network, height=64, width=64)
    assert reference.data == "drawn world, held-out scenes of up to 2 objects, seed 0, 64 x 64"
    Yardstick(DRAWN, ALL, network=network, reference=reference)
    fewer = drawn_captions(20, seed=0, kind=CaptionKind())
    with pytest.raises(ContractError, match="there are 20 pictures, and the reference"):
        Yardstick(fewer, ALL, network=network, reference=reference)
    Yardstick(fewer, Wanted(kid=True), network=network, reference=reference)
    foreign = replace(reference, space=replace(network.space, name="inception"))
    with pytest.raises(ContractError, match="name inception"):
        Yardstick(DRAWN, Wanted(kid=True), network=network, reference=foreign)


@pytest.mark.parametrize(
    ("captions", "wanted", "message"),
    [
        (drawn_captions(8, seed=0, kind=CaptionKind()), Wanted(fid=True), "more than 8 for FID"),
        (drawn_captions(3, seed=0, kind=CaptionKind()), Wanted(kid=True), "at least 4 for KID"),
        (CaptionSet(("a", "b")), Wanted(attributes=True), "captions of the drawn world alone"),
        (CaptionSet(("a",) * 9), Wanted(kid=True), "reference: None .* stored statistics"),
    ],
)
def test_measures_that_need_more_are_refused_before_anything_is_painted(
    network, captions, wanted, message
):
    with pytest.raises(BadFieldError, match=message):
        Yardstick(captions, wanted, network=network)


def test_a_network_without_a_text_tower_gives_no_clip_score(network):
    class Blind:
        space: FeatureSpace = network.space

    with pytest.raises(BadFieldError, match=r"feature_network: .* reads captions too"):
        Yardstick(DRAWN, Wanted(clip_score=True), network=Blind())


def test_pictures_that_are_not_square_or_of_another_size_are_refused():
    yardstick = Yardstick(DRAWN, Wanted(attributes=True))
    with pytest.raises(BadFieldError, match="'64 x 32' is not allowed; allowed: square ones"):
        yardstick.prepare(64, 32)
    yardstick.prepare(64, 64)
    with pytest.raises(ContractError, match="some of 32 x 32"):
        yardstick.measure(np.zeros((24, 32, 32, 3), dtype=np.uint8))
