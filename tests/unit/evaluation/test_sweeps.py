import json
from dataclasses import replace

import pytest
from PIL import Image

from carrara_models.errors import BadFieldError, CheckpointError, ContractError
from carrara_models.evaluation.estimates import Estimate
from carrara_models.evaluation.features import FeatureSpace
from carrara_models.evaluation.measures import Basis, Measure
from carrara_models.evaluation.plots import plot_over_calls, plot_trade_off
from carrara_models.evaluation.preprocessing import Preprocessing
from carrara_models.evaluation.sweeps import (
    SweepPoint,
    differing,
    from_json,
    keys_of,
    to_json,
    to_markdown,
)

SPACE = FeatureSpace(
    "drawn_clip",
    "a" * 64,
    8,
    Preprocessing("square", 32, 32, "bicubic", (0.5,) * 3, (0.5,) * 3),
)
FID, CLIP = "fid_drawn_clip", "clip_score_drawn_clip"


def point(guidance, steps, scheduler, *, fid, clip, pictures=300, checkpoint="drawn"):
    return SweepPoint(
        checkpoint=checkpoint,
        settings={
            "guidance_scale": guidance,
            "num_inference_steps": steps,
            "scheduler": scheduler,
            "eta": 0.0,
        },
        network_calls=2 * steps - 1 if scheduler == "heun" else steps,
        seconds=1.5,
        measures=(
            Measure(FID, Estimate.of(fid, deviation=0.5), Basis(SPACE, pictures, "scenes")),
            Measure(
                CLIP,
                Estimate.of(clip, deviation=0.1),
                Basis(SPACE, pictures, "captions"),
                floor=11.0,
                ceiling=30.0,
            ),
        ),
    )


# Out of order, as workers may finish.
POINTS = [
    point(3.0, 20, "euler", fid=12.0, clip=27.0),
    point(1.0, 20, "euler", fid=20.0, clip=22.0),
    point(7.5, 20, "euler", fid=16.0, clip=28.0),
    point(3.0, 5, "ddim", fid=31.0, clip=25.0),
    point(3.0, 50, "ddim", fid=11.5, clip=27.2),
]


def curves(axes):
    """Label and data of every curve."""
    return {
        container.get_label(): container.lines[0].get_xydata().tolist()
        for container in axes.containers
    }


def test_fid_is_drawn_over_clip_score_along_rising_guidance(tmp_path):
    figure = plot_trade_off(POINTS, distance=FID, clip_score=CLIP, file=tmp_path / "trade.png")
    (axes,) = figure.axes
    assert curves(axes) == {
        "num_inference_steps 20, euler": [[22, 20], [27, 12], [28, 16]],
        "num_inference_steps 5, ddim": [[25, 31]],
        "num_inference_steps 50, ddim": [[27.2, 11.5]],
    }
    assert axes.get_xlabel() == f"{CLIP} (300 pictures)"
    assert axes.get_ylabel() == f"{FID} (300 pictures)"
    assert [text.get_text() for text in axes.texts] == ["1", "3", "7.5", "3", "3"]
    with Image.open(tmp_path / "trade.png") as picture:
        assert picture.size == (900, 675)


def test_measures_are_drawn_over_network_calls_a_panel_each(tmp_path):
    points = [
        point(3.0, 10, "heun", fid=14.0, clip=27.0),
        point(3.0, 20, "euler", fid=12.0, clip=27.5),
        point(3.0, 5, "heun", fid=19.0, clip=25.0),
        point(3.0, 10, "euler", fid=20.0, clip=26.0),
    ]
    figure = plot_over_calls(points, keys=[FID, CLIP], file=tmp_path / "calls.svg")
    first, second = figure.axes
    assert curves(first) == {"heun": [[9, 19], [19, 14]], "euler": [[10, 20], [20, 12]]}
    assert curves(second) == {"heun": [[9, 25], [19, 27]], "euler": [[10, 26], [20, 27.5]]}
    assert first.get_xlabel() == "network calls"
    assert (tmp_path / "calls.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_checkpoints_have_curves_of_their_own(tmp_path):
    points = [
        point(3.0, 20, "euler", fid=12.0, clip=27.0),
        point(3.0, 20, "euler", fid=9.0, clip=28.0, checkpoint="other"),
    ]
    figure = plot_trade_off(points, distance=FID, clip_score=CLIP, file=tmp_path / "trade.png")
    assert curves(figure.axes[0]) == {"drawn": [[27, 12]], "other": [[28, 9]]}


def test_error_bars_are_the_intervals(tmp_path):
    figure = plot_over_calls(POINTS[3:4], keys=[FID], file=tmp_path / "calls.png")
    (container,) = figure.axes[0].containers
    ((low, high),) = (segment[:, 1] for segment in container.lines[2][0].get_segments())
    assert (low, high) == pytest.approx((31 - 0.98, 31 + 0.98), abs=1e-3)


def test_points_are_told_apart_by_what_differs():
    assert differing(POINTS) == ["guidance_scale", "num_inference_steps", "scheduler"]
    assert differing(POINTS[:2]) == ["guidance_scale"]
    assert differing(POINTS[:1]) == []
    named = replace(POINTS[0], checkpoint="other", settings=POINTS[0].settings | {"eta": 1.0})
    assert differing([POINTS[0], named]) == ["checkpoint", "eta"]


def test_json_holds_every_point_and_each_basis_once_and_is_read_back():
    document = json.loads(json.dumps(to_json(POINTS)))
    assert document["bases"][FID]["space"]["fingerprint"] == "a" * 64
    assert document["bases"][CLIP] | {"space": None} == {
        "space": None,
        "pictures": 300,
        "against": "captions",
    }
    first = document["points"][0]
    assert first["settings"] == {
        "guidance_scale": 3.0,
        "num_inference_steps": 20,
        "scheduler": "euler",
        "eta": 0.0,
    }
    assert (first["network_calls"], first["seconds"]) == (20, 1.5)
    assert first["measures"][FID]["value"] == 12
    assert first["measures"][FID]["high"] == pytest.approx(12.98, abs=1e-3)
    assert (first["measures"][CLIP]["floor"], first["measures"][CLIP]["ceiling"]) == (11, 30)
    assert from_json(document) == POINTS


@pytest.mark.parametrize(
    "document", [{}, {"bases": {}, "points": [{}]}, {"bases": [], "points": []}]
)
def test_other_objects_are_no_reports(document):
    with pytest.raises(CheckpointError, match="no report of measures"):
        from_json(document)


def test_the_table_has_a_line_per_point_intervals_and_notes():
    few = replace(POINTS[1], measures=(replace(POINTS[1].measures[1], notes=("some were cut",)),))
    lines = to_markdown([POINTS[0], few]).splitlines()
    assert lines[0] == f"| guidance_scale | {FID} | {CLIP} |"
    assert lines[2] == "| 3 | 12 (11.02 to 12.98) | 27 (26.8 to 27.2) |"
    assert lines[3] == "| 1 | - | 22 (21.8 to 22.2) |"
    assert "- settings: checkpoint drawn, num_inference_steps 20, scheduler euler, eta 0" in lines
    assert f"- {FID}: 300 pictures against scenes" in lines
    assert lines[-1] == f"- {CLIP}: some were cut"
    assert keys_of([few, POINTS[0]]) == [CLIP, FID]


def test_the_table_tells_the_highest_floor_and_the_ceilings_of_each_checkpoint():
    higher = point(1.0, 20, "euler", fid=20.0, clip=22.0)
    fid, clip = higher.measures
    higher = replace(higher, measures=(fid, replace(clip, floor=13.0)))
    lines = to_markdown([POINTS[0], higher]).splitlines()
    assert f"- highest floors: {CLIP} 13" in lines
    assert f"- ceilings: {CLIP} 30" in lines

    other = point(3.0, 20, "euler", fid=9.0, clip=28.0, checkpoint="other")
    fid, clip = other.measures
    other = replace(other, measures=(replace(fid, ceiling=2.5), replace(clip, ceiling=31.0)))
    lines = to_markdown([POINTS[0], other, higher]).splitlines()
    assert f"- ceilings of drawn: {CLIP} 30" in lines
    assert f"- ceilings of other: {FID} 2.5, {CLIP} 31" in lines
    assert not [line for line in to_markdown([other]).splitlines() if "highest" in line]


def test_checkpoints_of_one_point_each_have_a_column_each():
    other = point(3.0, 10, "heun", fid=9.0, clip=28.0, checkpoint="other")
    other = replace(other, settings=other.settings | {"noise_level": 50})
    lines = to_markdown([POINTS[0], other]).splitlines()
    assert lines[:9] == [
        "|  | drawn | other |",
        "| --- | ---: | ---: |",
        "| num_inference_steps | 20 | 10 |",
        "| scheduler | euler | heun |",
        "| noise_level | - | 50 |",
        "| network_calls | 20 | 19 |",
        f"| {FID} | 12 (11.02 to 12.98) | 9 (8.02 to 9.98) |",
        f"| {CLIP} | 27 (26.8 to 27.2) | 28 (27.8 to 28.2) |",
        "",
    ]
    assert lines[9] == "- settings: guidance_scale 3, eta 0"
    two_of_one = to_markdown([POINTS[0], other, POINTS[1]]).splitlines()
    assert two_of_one[0].startswith("| checkpoint | guidance_scale |")


def test_network_calls_stand_in_the_table_where_they_differ():
    heun = point(3.0, 20, "heun", fid=10.0, clip=27.0)
    lines = to_markdown([POINTS[0], heun]).splitlines()
    assert lines[0].startswith("| scheduler | network_calls |")
    assert lines[3].startswith("| heun | 39 |")


def test_a_single_point_has_a_line_per_measure_with_floor_and_ceiling():
    lines = to_markdown(POINTS[:1]).splitlines()
    assert lines[0] == "| measure | score | 95 % interval | floor | ceiling |"
    assert lines[2] == f"| {FID} | 12 | 11.02 to 12.98 | - | - |"
    assert lines[3] == f"| {CLIP} | 27 | 26.8 to 27.2 | 11 | 30 |"


def test_points_that_do_not_compare_are_neither_listed_nor_drawn(tmp_path):
    odd = [*POINTS, point(3.0, 20, "heun", fid=9.0, clip=28.0, pictures=3000)]
    file = tmp_path / "plot.png"
    for refused in (
        lambda: to_json(odd),
        lambda: to_markdown(odd),
        lambda: plot_trade_off(odd, distance=FID, clip_score=CLIP, file=file),
        lambda: plot_over_calls(odd, keys=[FID], file=file),
    ):
        with pytest.raises(ContractError, match="count of pictures differs: 3000 and 300"):
            refused()
    assert not file.exists()


def test_a_key_that_was_not_measured_is_answered_with_those_that_were(tmp_path):
    with pytest.raises(BadFieldError, match=f"'fid_inception' is not allowed; allowed: {FID}"):
        plot_over_calls(POINTS, keys=["fid_inception"], file=tmp_path / "plot.png")
