import numpy as np
import pytest

from carrara_models.drawn_world.checker import ATTRIBUTES
from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import HELD_OUT_PAIRS
from carrara_models.evaluation.attributes import CaptionKind, held_out_captions, score_pictures
from carrara_models.pixels import batch_to_uint8


def test_captions_are_of_held_out_pairs_alone_and_one_seed_makes_the_same():
    scenes, captions = held_out_captions(50, seed=3)
    assert len(captions) == 50
    assert {
        (thing.shape, thing.colour) for scene in scenes for thing in scene.objects
    } <= HELD_OUT_PAIRS
    assert held_out_captions(50, seed=3) == (scenes, captions)
    assert held_out_captions(50, seed=4)[1] != captions


def test_true_pictures_score_full_and_grey_ones_nothing_but_grey():
    scenes, _ = held_out_captions(40, seed=0)
    true = score_pictures(batch_to_uint8(draw_scenes(scenes)), scenes)
    assert set(true) == set(ATTRIBUTES)
    assert set(true.values()) == {1.0}
    grey = score_pictures(np.full((40, 64, 64, 3), 128, dtype=np.uint8), scenes)
    share = sum(scene.background == "grey" for scene in scenes) / 40
    assert grey.pop("background") == pytest.approx(share)
    assert set(grey.values()) == {0.0}


def test_kinds_of_captions_differ_in_words_and_number_of_objects_alone():
    scenes, english = held_out_captions(30, seed=0, kind=CaptionKind(max_objects=3))
    same_scenes, chinese = held_out_captions(30, seed=0, kind=CaptionKind("zh", 3))
    _, paraphrases = held_out_captions(30, seed=0, kind=CaptionKind("en", 3, paraphrases=True))
    assert scenes == same_scenes
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert all(caption.isascii() for caption in english + paraphrases)
    assert all("色" in caption for caption in chinese)
    assert not set(english) & set(paraphrases)
