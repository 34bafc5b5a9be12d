import numpy as np
import pytest
from PIL import Image

from carrara_models.drawn_world.scenes import HELD_OUT_PAIRS
from carrara_models.errors import BadFieldError, CheckpointError
from carrara_models.evaluation.attributes import CaptionKind, held_out_captions, score_pictures
from carrara_models.evaluation.caption_sets import (
    drawn_captions,
    read_picture_folder,
    read_prompts,
)


def test_drawn_captions_are_the_held_out_ones_with_their_true_pictures():
    drawn = drawn_captions(20, seed=3, kind=CaptionKind(max_objects=3))
    scenes, captions = held_out_captions(20, seed=3, kind=CaptionKind(max_objects=3))
    assert (drawn.scenes, drawn.captions) == (tuple(scenes), tuple(captions))
    assert drawn.told["caption_kind"] == {"language": "en", "max_objects": 3, "paraphrases": False}
    pictures = drawn.draw_true(128, 128)
    assert (pictures.shape, pictures.dtype) == ((20, 128, 128, 3), np.uint8)
    assert set(score_pictures(pictures, scenes).values()) == {1.0}


def test_the_reference_is_of_as_many_other_scenes_of_the_same_split():
    drawn = drawn_captions(20, seed=3, kind=CaptionKind())
    reference = drawn.draw_reference(64, 64)
    assert reference.shape == (20, 64, 64, 3)
    assert score_pictures(reference, drawn.scenes)["all_right"] == 0
    others = drawn.draw_reference.args[0]
    assert {
        (thing.shape, thing.colour) for scene in others for thing in scene.objects
    } <= HELD_OUT_PAIRS
    assert drawn.data == "drawn world, held-out scenes of up to 2 objects, seed 3"
    again = drawn_captions(20, seed=3, kind=CaptionKind()).draw_reference(64, 64)
    assert np.array_equal(again, reference)


def test_prompts_are_the_lines_of_a_file_that_are_not_empty(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle \n\n\u84dd\u8272\u65b9\u5757\na cat\n", encoding="utf-8")
    assert read_prompts(file).captions == ("a red circle", "\u84dd\u8272\u65b9\u5757", "a cat")
    two = read_prompts(file, count=2)
    assert len(two.captions) == two.told["captions"] == 2
    assert two.draw_true is two.draw_reference is None
    with pytest.raises(
        BadFieldError, match=r"captions: 4 is not allowed; allowed: 2 to 3, the cap"
    ):
        read_prompts(file, count=4)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")


@pytest.fixture
def folder(tmp_path):
    for index in range(4):
        Image.new("RGB", (40, 20 + index), (60 * index, 0, 0)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"number {index}")
    return tmp_path


def test_a_folders_pictures_are_the_reference_and_belong_to_its_captions(folder):
    found = read_picture_folder(folder, seed=0)
    assert sorted(found.captions) == [f"number {index}" for index in range(4)]
    pictures = found.draw_true(8, 16)
    assert pictures.shape == (4, 8, 16, 3)
    reds = [int(caption[-1]) * 60 for caption in found.captions]
    assert pictures[:, 4, 8, 0].tolist() == reds
    assert found.draw_reference is found.draw_true
    assert found.warnings == ()
    assert len(read_picture_folder(folder, count=2, seed=0).captions) == 2


def test_a_folder_with_too_few_pictures_is_refused_and_broken_ones_are_told(folder):
    with pytest.raises(
        BadFieldError, match="captions: 5 is not allowed; allowed: 2 to 4, the pict"
    ):
        read_picture_folder(folder, count=5, seed=0)
    (folder / "2.png").write_bytes(b"no picture")
    (warning,) = read_picture_folder(folder, seed=0).warnings
    assert "1 not a JPEG, PNG or WebP picture" in warning
