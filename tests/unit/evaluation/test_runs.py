import numpy as np
import pytest

from carrara_models.errors import BadFieldError
from carrara_models.evaluation.attributes import CaptionKind
from carrara_models.evaluation.caption_sets import drawn_captions
from carrara_models.evaluation.runs import Painted, measure_sweep, try_out
from carrara_models.evaluation.yardstick import Wanted, Yardstick

DRAWN = drawn_captions(6, seed=0, kind=CaptionKind())


def paint(captions, settings):
    """The true pictures; grey ones below five steps."""
    size = settings.get("size", 64)
    pictures = DRAWN.draw_true(size, size)[: len(captions)]
    if settings["num_inference_steps"] < 5:
        pictures = np.full_like(pictures, 128)
    return Painted(pictures, {"scheduler": "euler", **settings}, 7, 0.5)


def test_every_settings_gives_a_point_of_what_was_painted_with_it():
    yardstick = Yardstick(DRAWN, Wanted(attributes=True))
    sweep = [{"num_inference_steps": steps} for steps in (2, 5)]
    yardstick.prepare(*try_out(paint, DRAWN.captions[0], sweep))
    points = list(
        measure_sweep(paint, DRAWN.captions, sweep, yardstick=yardstick, checkpoint="drawn")
    )
    assert [point.settings["num_inference_steps"] for point in points] == [2, 5]
    assert [point.measure("all_right").estimate.value for point in points] == [0, 1]
    assert points[0].settings["scheduler"] == "euler"
    assert (points[0].network_calls, points[0].seconds, points[0].checkpoint) == (7, 0.5, "drawn")


def test_a_sweep_over_sizes_is_refused_after_one_picture_of_each():
    asked = []

    def painter(captions, settings):
        asked.append(len(captions))
        return paint(captions, settings)

    sweep = [{"num_inference_steps": 5, "size": size} for size in (64, 32)]
    with pytest.raises(BadFieldError, match=r"64 x 64, 32 x 32.*one size in all points"):
        try_out(painter, DRAWN.captions[0], sweep)
    assert asked == [1, 1]
