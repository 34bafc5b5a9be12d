import numpy as np
import torch

from carrara_models.drawn_world.scenes import BACKGROUNDS, COLOURS
from carrara_models.drawn_world.strokes import draw_strokes


def test_pictures_are_in_range_in_any_size_and_drawn_from_the_seed():
    pictures = draw_strokes(6, np.random.default_rng(0), height=32, width=48)
    assert pictures.shape == (6, 3, 32, 48)
    assert pictures.dtype == torch.float32
    assert pictures.abs().max() <= 1
    assert torch.equal(pictures, draw_strokes(6, np.random.default_rng(0), height=32, width=48))
    assert not torch.equal(pictures, draw_strokes(6, np.random.default_rng(1), height=32, width=48))
    assert draw_strokes(0, np.random.default_rng(0), height=8, width=8).shape == (0, 3, 8, 8)


def test_every_colour_meets_every_background():
    pictures = (draw_strokes(400, np.random.default_rng(0), height=32, width=32) + 1) * 127.5
    seen = set()
    for picture in pictures.permute(0, 2, 3, 1).reshape(400, -1, 3):
        found = {
            name
            for name, paint in (COLOURS | BACKGROUNDS).items()
            if ((picture - torch.tensor(paint)).abs().amax(-1) < 0.5).sum() >= 8
        }
        seen |= {(a, b) for a in found & set(COLOURS) for b in found & set(BACKGROUNDS)}
    assert seen == {(a, b) for a in COLOURS for b in BACKGROUNDS}
