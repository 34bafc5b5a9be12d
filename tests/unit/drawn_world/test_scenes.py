from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from carrara_models.drawn_world.scenes import (
    ALL_PAIRS,
    BACKGROUNDS,
    COLOURS,
    GAP,
    HELD_OUT_PAIRS,
    MARGIN,
    PAIRS,
    PLACES,
    SHAPES,
    sample_scene,
)


def test_objects_lie_wholly_in_the_picture():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        for thing in sample_scene(rng, max_objects=3).objects:
            for coordinate in (thing.x, thing.y):
                assert thing.radius + MARGIN <= coordinate + 1e-9
                assert coordinate - 1e-9 <= 1 - thing.radius - MARGIN


def test_two_objects_stand_apart_along_the_axis_of_their_relation():
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(2000):
        scene = sample_scene(rng, object_count=2)
        first, second = scene.objects
        right, down = second.x - first.x, second.y - first.y
        along, across = (right, down) if scene.relation == "left of" else (down, right)
        assert along >= first.radius + second.radius + GAP - 1e-9
        assert along > abs(across)
        seen.add(scene.relation)
    assert seen == {"left of", "above"}


def test_a_third_object_stands_apart_from_both_across_their_axis():
    rng = np.random.default_rng(6)
    seen = set()
    for _ in range(2000):
        scene = sample_scene(rng, object_count=3)
        first, second, third = scene.objects
        right, down = second.x - first.x, second.y - first.y
        along, across = (right, down) if scene.relation == "left of" else (down, right)
        assert along >= first.radius + second.radius + GAP - 1e-9
        assert along > abs(across)
        for other in (first, second):
            right, down = other.x - third.x, other.y - third.y
            apart = {"left of": right, "right of": -right, "above": down, "below": -down}
            least = other.radius + third.radius + GAP
            assert apart[scene.third_relation] >= least - 1e-9
        assert len({thing.colour for thing in scene.objects}) == 3
        seen.add((scene.relation, scene.third_relation))
    assert seen == {
        *(("left of", third) for third in ("above", "below")),
        *(("above", third) for third in ("left of", "right of")),
    }


@pytest.mark.parametrize("max_objects", [1, 2, 3])
def test_no_scene_holds_more_objects_than_are_asked_for(max_objects):
    rng = np.random.default_rng(7)
    counts = {len(sample_scene(rng, max_objects=max_objects).objects) for _ in range(200)}
    assert counts == set(range(1, max_objects + 1))


def test_four_objects_are_refused():
    with pytest.raises(ValueError, match="1 to 3"):
        sample_scene(np.random.default_rng(0), max_objects=4)


def test_one_object_stands_nearest_to_its_own_place():
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(1000):
        scene = sample_scene(rng, object_count=1)
        (thing,) = scene.objects
        distances = {p: np.hypot(x - thing.x, y - thing.y) for p, (x, y) in PLACES.items()}
        assert min(distances, key=distances.get) == scene.place
        seen.add(scene.place)
    assert seen == set(PLACES)


def test_no_training_scene_holds_a_held_out_pair_and_no_held_out_scene_another():
    rng = np.random.default_rng(3)
    for split in ("train", "heldout"):
        for _ in range(2000):
            for thing in sample_scene(rng, split=split).objects:
                is_held_out = (thing.shape, thing.colour) in HELD_OUT_PAIRS
                assert is_held_out == (split == "heldout")


def test_one_in_seven_pairs_is_held_out_and_every_shape_and_colour_is_trained():
    assert len(HELD_OUT_PAIRS) == len(SHAPES)
    assert len(ALL_PAIRS) == 56
    assert {shape for shape, _ in PAIRS["train"]} == set(SHAPES)
    assert {colour for _, colour in PAIRS["train"]} == set(COLOURS)
    assert {shape for shape, _ in HELD_OUT_PAIRS} == set(SHAPES)


def test_held_out_pairs_are_the_ones_that_the_shipped_checkpoint_never_saw():
    assert {
        ("circle", "purple"),
        ("crescent", "red"),
        ("cross", "orange"),
        ("heart", "orange"),
        ("ring", "green"),
        ("square", "yellow"),
        ("star", "orange"),
        ("triangle", "green"),
    } == HELD_OUT_PAIRS


def test_one_seed_makes_one_scene():
    one, same, other = (sample_scene(np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert one == same
    assert one != other


def test_colours_are_well_apart():
    for table, least in ((COLOURS, 80), (BACKGROUNDS | COLOURS, 60)):
        for one, other in combinations(table.values(), 2):
            assert np.linalg.norm(np.subtract(one, other)) >= least


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_colours_may_be_made_even(split):
    rng = np.random.default_rng(4)
    scenes = [
        sample_scene(rng, split=split, object_count=count, even_colours=True)
        for count in (1, 2, 3)
        for _ in range(700)
    ]
    for scene in scenes:
        assert len({thing.colour for thing in scene.objects}) == len(scene.objects)
        assert {(thing.shape, thing.colour) for thing in scene.objects} <= set(PAIRS[split])
    counts = Counter(thing.colour for scene in scenes for thing in scene.objects)
    assert counts.keys() == {colour for _, colour in PAIRS[split]}
    mean = counts.total() / len(counts)
    assert all(0.88 * mean < count < 1.12 * mean for count in counts.values())
