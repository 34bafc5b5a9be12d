import numpy as np
import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from carrara_models.evaluation.preprocessing import Preprocessing

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (20, 33), (32, 32)])
def test_clips_preparation_is_that_of_transformers(height, width):
    pictures = noise(height, width)
    ours = Preprocessing("shortest_edge", 32, 28, "bicubic", MEAN, STD).apply(pictures)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}
    )
    theirs = processor(list(pictures), return_tensors="pt").pixel_values
    assert ours.shape == (2, 3, 28, 28)
    assert float((ours - theirs).abs().max()) < 1e-5


def test_tensorflows_resize_takes_pixels_from_the_corner_and_repeats_the_last():
    ramp = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    ramp[0, :, 1] = 200
    prepared = Preprocessing("square", 4, 4, "tf1_bilinear", **PLAIN).apply(ramp)
    expected = np.array([0, 100, 200, 200], dtype=np.float32) / 255
    assert np.allclose(prepared[0, 0].numpy(), np.tile(expected, (4, 1)), atol=1e-6)


def test_tensorflows_resize_halves_without_antialiasing():
    pictures = noise(8, 8)
    prepared = Preprocessing("square", 4, 4, "tf1_bilinear", **PLAIN).apply(pictures)
    picked = pictures[:, ::2, ::2].transpose(0, 3, 1, 2) / 255
    assert np.allclose(prepared.numpy(), picked, atol=1e-6)


def test_means_and_deviations_are_subtracted_and_divided_by():
    white = np.full((1, 4, 4, 3), 255, dtype=np.uint8)
    prepared = Preprocessing("square", 4, 4, "bilinear", (0.5, 0.25, 0), (0.5, 0.5, 2)).apply(white)
    assert prepared[0, :, 0, 0].tolist() == [1.0, 1.5, 0.5]
