from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from carrara_models.drawn_world.checker import read_picture, score_reading, share_right
from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import BACKGROUNDS, Object, Scene, sample_scene
from carrara_models.pixels import batch_to_uint8


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [sample_scene(rng, split=("train", "heldout")[i % 2]) for i in range(1000)]


@pytest.fixture(scope="module")
def pictures(scenes):
    return batch_to_uint8(draw_scenes(scenes))


@pytest.fixture(scope="module")
def readings(pictures):
    return [read_picture(picture) for picture in pictures]


def test_every_attribute_of_a_thousand_true_pictures_is_read_right(scenes, readings):
    scores = [score_reading(r, scene) for r, scene in zip(readings, scenes, strict=True)]
    assert set(share_right(scores).values()) == {1.0}


def test_against_shuffled_scenes_the_score_is_near_chance(scenes, readings):
    shuffled = scenes[101:] + scenes[:101]
    scores = [score_reading(r, scene) for r, scene in zip(readings, shuffled, strict=True)]
    shares = share_right(scores)
    # 1 in 6 backgrounds; of colour, shape and the rest at most 1 in 4, with two sizes and
    # two kinds of scene to hit first.
    assert shares["background"] == pytest.approx(1 / 6, abs=0.04)
    assert shares["colour"] < 0.08
    assert shares["shape"] < 0.08
    assert shares["size"] < 0.3
    assert shares["place"] < 0.08
    assert shares["relation"] < 0.3
    assert shares["all_right"] < 0.005


def test_three_objects_are_read_right_and_against_shuffled_scenes_near_chance():
    rng = np.random.default_rng(3)
    scenes = [
        sample_scene(rng, split=("train", "heldout")[i % 2], object_count=3) for i in range(300)
    ]
    readings = [read_picture(picture) for picture in batch_to_uint8(draw_scenes(scenes))]
    scores = [score_reading(r, scene) for r, scene in zip(readings, scenes, strict=True)]
    assert set(share_right(scores).values()) == {1.0}
    shuffled = scenes[101:] + scenes[:101]
    scores = [score_reading(r, scene) for r, scene in zip(readings, shuffled, strict=True)]
    shares = share_right(scores)
    assert shares["background"] == pytest.approx(1 / 6, abs=0.07)
    # Matching chooses the best of 6 orders; two of each of 4 arrangements remain.
    assert shares["colour"] < 0.1
    assert shares["shape"] < 0.1
    assert shares["relation"] < 0.3
    assert shares["all_right"] == 0


@pytest.mark.parametrize(("x", "y"), [(0.5, 0.75), (0.25, 0.4), (0.8, 0.5)])
def test_a_third_object_that_is_not_above_both_gets_the_relation_wrong(x, y):
    pair = (
        Object("heart", "blue", "small", 0.25, 0.75, 0.16),
        Object("ring", "green", "small", 0.75, 0.45, 0.16),
    )
    scene = Scene(
        "white",
        (*pair, Object("star", "red", "small", 0.5, 0.2, 0.16)),
        relation="left of",
        third_relation="above",
    )
    reading = read_picture(batch_to_uint8(draw_scenes([scene]))[0])
    assert score_reading(reading, scene)["all_right"]
    star = next(thing for thing in reading.objects if thing.shape == "star")
    moved = replace(reading, objects=(*set(reading.objects) - {star}, replace(star, x=x, y=y)))
    scores = score_reading(moved, scene)
    assert {key for key, right in scores.items() if not right} == {"relation", "all_right"}


def test_a_little_blur_and_noise_leave_the_reading_as_it_was(scenes, pictures):
    noise = np.random.default_rng(1).normal(0, 5, pictures[:200].shape)
    blurred = gaussian_filter(pictures[:200].astype(float), (0, 0.6, 0.6, 0)) + noise
    scores = [
        score_reading(read_picture(picture), scene)
        for picture, scene in zip(blurred.clip(0, 255).astype(np.uint8), scenes[:200], strict=True)
    ]
    assert share_right(scores)["all_right"] >= 0.98


def test_larger_pictures_are_read_as_well(scenes):
    pictures = batch_to_uint8(draw_scenes(scenes[:40], height=128, width=128))
    for picture, scene in zip(pictures, scenes[:40], strict=True):
        assert score_reading(read_picture(picture), scene)["all_right"]


def test_each_single_change_of_a_scene_is_noticed():
    thing = Object("heart", "blue", "small", 0.25, 0.25, 0.16)
    scene = Scene("white", (thing,), place="top left")
    reading = read_picture(batch_to_uint8(draw_scenes([scene]))[0])
    assert score_reading(reading, scene)["all_right"]
    changed = {
        "background": Scene("pink", (thing,), place="top left"),
        "colour": Scene("white", (Object("heart", "cyan", "small", 0, 0, 0),), place="top left"),
        "shape": Scene("white", (Object("ring", "blue", "small", 0, 0, 0),), place="top left"),
        "size": Scene("white", (Object("heart", "blue", "large", 0, 0, 0),), place="top left"),
        "place": Scene("white", (thing,), place="top"),
    }
    for name, other in changed.items():
        scores = score_reading(reading, other)
        assert {key for key, right in scores.items() if not right} == {name, "all_right"}


def test_exchanged_objects_get_the_relation_wrong_alone():
    first = Object("heart", "blue", "small", 0.25, 0.5, 0.16)
    second = Object("star", "red", "large", 0.7, 0.5, 0.22)
    reading = read_picture(
        batch_to_uint8(draw_scenes([Scene("black", (first, second), relation="left of")]))[0]
    )
    scores = score_reading(reading, Scene("black", (second, first), relation="left of"))
    assert {key for key, right in scores.items() if not right} == {"relation", "all_right"}


def test_a_stranger_in_the_picture_makes_the_count_wrong(scenes, pictures):
    seen = 0
    for picture, scene in zip(pictures[:100], scenes[:100], strict=True):
        spoiled = picture.copy()
        ground = np.array(BACKGROUNDS[scene.background])
        corner = spoiled[:9, :9]
        if np.abs(corner - ground).max() > 2:
            continue
        spoiled[1:9, 1:9] = 255 - spoiled[1:9, 1:9] if scene.background != "grey" else 0
        seen += 1
        scores = score_reading(read_picture(spoiled), scene)
        assert not scores["object_count"]
        assert not scores["all_right"]
    assert seen > 20


def test_an_object_of_two_colours_is_not_right():
    scene = Scene("white", (Object("square", "red", "large", 0.5, 0.5, 0.22),), place="centre")
    picture = batch_to_uint8(draw_scenes([scene]))[0]
    picture[32:44, 20:44] = (45, 85, 215)
    assert not score_reading(read_picture(picture), scene)["all_right"]


def test_noise_and_empty_pictures_are_never_right(scenes):
    rng = np.random.default_rng(2)
    for scene in scenes[:50]:
        noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        empty = np.full((64, 64, 3), BACKGROUNDS[scene.background], dtype=np.uint8)
        for picture in (noise, empty):
            scores = score_reading(read_picture(picture), scene)
            assert not scores["shape"]
            assert not scores["all_right"]


def test_a_dented_object_loses_its_shape_and_nothing_else():
    scene = Scene("white", (Object("square", "red", "large", 0.5, 0.5, 0.22),), place="centre")
    picture = batch_to_uint8(draw_scenes([scene]))[0]
    picture[20:28, 28:36] = BACKGROUNDS["white"]
    scores = score_reading(read_picture(picture), scene)
    assert {key for key, right in scores.items() if not right} == {"shape", "all_right"}


def test_a_crumb_of_an_object_s_own_colour_is_a_stranger():
    scene = Scene("white", (Object("square", "red", "large", 0.5, 0.5, 0.22),), place="centre")
    picture = batch_to_uint8(draw_scenes([scene]))[0]
    picture[4:7, 4:7] = (214, 40, 40)
    assert not score_reading(read_picture(picture), scene)["object_count"]
