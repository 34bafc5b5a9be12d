import torch

from carrara_models.drawn_world.captions import without_shapes
from carrara_models.training.data.drawn import DrawnWorld


def test_a_step_is_the_same_whatever_was_asked_for_before():
    whole = DrawnWorld(height=16, width=24, seed=0, omit=0.5)
    row = [whole.examples(range(3 * step, 3 * step + 3)) for step in range(4)]
    again = DrawnWorld(height=16, width=24, seed=0, omit=0.5).examples(range(9, 12))
    assert torch.equal(row[3].pixels, again.pixels)
    assert row[3].captions == again.captions
    assert again.pixels.shape == (3, 3, 16, 24)
    assert -1 <= again.pixels.min() <= again.pixels.max() <= 1
    assert not again.skipped
    assert len({tuple(examples.captions) for examples in row}) == 4


def test_another_seed_is_another_world():
    captions = [DrawnWorld(height=8, width=8, seed=s).examples(range(3)).captions for s in (0, 1)]
    assert captions[0] != captions[1]


def test_some_objects_are_blobs_and_their_captions_name_no_shape():
    source = DrawnWorld(height=16, width=16, seed=0, blobs=0.5)
    captions = source.examples(range(200)).captions
    shapeless = [caption for caption in captions if without_shapes(caption) == caption]
    assert 70 <= len(shapeless) <= 130
    assert all(shapeless)
    # A picture depends on nothing but its position.
    assert torch.equal(source.examples([7]).pixels[0], source.examples(range(5, 9)).pixels[2])
