import numpy as np
import torch

from carrara_models.drawn_world.blobs import draw_blobs
from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import sample_scene


def scenes_of(count: int):
    rng = np.random.default_rng(1)
    return [sample_scene(rng, max_objects=3) for _ in range(count)]


def test_pictures_are_in_range_in_any_size_and_drawn_from_the_seed():
    scenes = scenes_of(6)
    pictures = draw_blobs(scenes, np.random.default_rng(0), height=32, width=48)
    assert pictures.shape == (6, 3, 32, 48)
    assert pictures.dtype == torch.float32
    assert pictures.abs().max() <= 1
    again, other = (
        draw_blobs(scenes, np.random.default_rng(s), height=32, width=48) for s in (0, 1)
    )
    assert torch.equal(pictures, again)
    assert not torch.equal(pictures, other)
    assert draw_blobs([], np.random.default_rng(0), height=8, width=8).shape == (0, 3, 8, 8)


def test_a_blob_has_the_colour_and_the_place_of_what_it_stands_for():
    scenes = scenes_of(64)
    blobs = draw_blobs(scenes, np.random.default_rng(0), height=64, width=64)
    shapes = draw_scenes(scenes, height=64, width=64)
    for scene, blob, picture in zip(scenes, blobs, shapes, strict=True):
        assert not torch.equal(blob, picture)
        assert torch.equal(blob[:, 0], picture[:, 0])  # the background
        for thing in scene.objects:
            if thing.shape not in ("ring", "crescent"):  # they are empty in the middle
                row, column = int(thing.y * 64), int(thing.x * 64)
                assert torch.equal(blob[:, row, column], picture[:, row, column])


def test_a_blob_is_as_large_as_its_shape_would_be():
    scenes = [scene for scene in scenes_of(64) if len(scene.objects) == 1]
    blobs = draw_blobs(scenes, np.random.default_rng(0), height=64, width=64)
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    for scene, blob in zip(scenes, blobs, strict=True):
        painted = (blob - blob[:, :1, :1]).abs().sum(dim=0) > 0.01
        thing = scene.objects[0]
        distances = torch.hypot(rows - thing.y * 64, columns - thing.x * 64)[painted]
        assert abs(distances.max() - thing.radius * 64) < 1.5
