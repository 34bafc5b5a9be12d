import numpy as np
import pytest
import torch

from carrara_models.drawn_world.drawing import draw_masks, draw_scenes
from carrara_models.drawn_world.scenes import BACKGROUNDS, SHAPES, Object, Scene, sample_scene


def test_no_scenes_are_no_pictures():
    assert draw_scenes([], height=16, width=24).shape == (0, 3, 16, 24)


def test_pictures_stay_in_range_and_do_not_depend_on_their_batch():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(32)]
    pictures = draw_scenes(scenes)
    assert pictures.shape == (32, 3, 64, 64)
    assert pictures.min() >= -1
    assert pictures.max() <= 1
    alone = torch.cat([draw_scenes([scene]) for scene in scenes])
    torch.testing.assert_close(pictures, alone, rtol=0, atol=1e-5)


def test_a_larger_picture_shows_the_same_scene():
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng) for _ in range(16)]
    small = draw_scenes(scenes, height=64, width=64)
    large = draw_scenes(scenes, height=256, width=256)
    reduced = torch.nn.functional.avg_pool2d(large, 4)
    # Coverage by distance differs from the true area a little, at corners.
    assert (small - reduced).abs().mean() < 0.004


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_the_box_of_its_radius_and_no_more(shape):
    centre = torch.tensor([0.5])
    mask = draw_masks(
        shape, x=centre, y=centre, radius=torch.tensor([0.25]), height=400, width=400
    )[0]
    assert mask.min() >= 0
    assert mask.max() <= 1
    rows, columns = torch.nonzero(mask > 0.5, as_tuple=True)
    for indices in (rows, columns):
        assert indices.min() >= 99
        assert indices.max() <= 300
    extent = max(rows.max() - rows.min(), columns.max() - columns.min())
    assert extent >= 0.84 * 200


def test_two_objects_of_one_shape_are_both_drawn():
    objects = (
        Object("circle", "red", "small", 0.25, 0.5, 0.16),
        Object("circle", "blue", "small", 0.75, 0.5, 0.16),
    )
    picture = draw_scenes([Scene("white", objects, relation="left of")])[0]
    red, blue = picture[:, 32, 16], picture[:, 32, 48]
    assert red[0] > 0.5 > red[2]
    assert blue[2] > 0.5 > blue[0]


def test_a_wide_picture_holds_the_scene_in_its_middle():
    scene = sample_scene(np.random.default_rng(2))
    wide = draw_scenes([scene], height=64, width=96)[0]
    torch.testing.assert_close(wide[:, :, 16:80], draw_scenes([scene])[0])
    ground = torch.tensor(BACKGROUNDS[scene.background]) / 127.5 - 1
    torch.testing.assert_close(wide[:, :, 0], ground[:, None].expand(3, 64))
