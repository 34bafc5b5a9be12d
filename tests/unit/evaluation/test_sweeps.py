import json
from dataclasses import replace

import pytest
from PIL import Image

from carrara_models.errors import BadFieldError, ContractError
from carrara_models.evaluation.estimates import Estimate
from carrara_models.evaluation.features import FeatureSpace
from carrara_models.evaluation.measures import Basis, Measure
from carrara_models.evaluation.plots import plot_over_steps, plot_trade_off
from carrara_models.evaluation.preprocessing import Preprocessing
from carrara_models.evaluation.sweeps import SweepPoint, keys_of, to_json, to_markdown

SPACE = FeatureSpace(
    "drawn_clip",
    "a" * 64,
    8,
    Preprocessing("square", 32, 32, "bicubic", (0.5,) * 3, (0.5,) * 3),
)
FID, CLIP = "fid_drawn_clip", "clip_score_drawn_clip"


def point(guidance, steps, scheduler, *, fid, clip, pictures=300):
    return SweepPoint(
        guidance_scale=guidance,
        num_inference_steps=steps,
        scheduler=scheduler,
        measures=(
            Measure(FID, Estimate.of(fid, deviation=0.5), Basis(SPACE, pictures, "scenes")),
            Measure(CLIP, Estimate.of(clip, deviation=0.1), Basis(SPACE, pictures, "captions")),
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


def curves(figure):
    """Label and data of every curve."""
    (axes,) = figure.axes
    return {
        container.get_label(): container.lines[0].get_xydata().tolist()
        for container in axes.containers
    }


def test_fid_is_drawn_over_clip_score_along_rising_guidance(tmp_path):
    figure = plot_trade_off(POINTS, fid=FID, clip_score=CLIP, file=tmp_path / "trade.png")
    assert curves(figure) == {
        "euler, 20 steps": [[22, 20], [27, 12], [28, 16]],
        "ddim, 5 steps": [[25, 31]],
        "ddim, 50 steps": [[27.2, 11.5]],
    }
    (axes,) = figure.axes
    assert axes.get_xlabel() == f"{CLIP} (300 pictures)"
    assert axes.get_ylabel() == f"{FID} (300 pictures)"
    assert [text.get_text() for text in axes.texts] == ["1", "3", "7.5", "3", "3"]
    with Image.open(tmp_path / "trade.png") as picture:
        assert picture.size == (900, 675)


def test_a_measure_is_drawn_over_steps(tmp_path):
    figure = plot_over_steps(POINTS, key=FID, file=tmp_path / "steps.svg")
    assert curves(figure) == {
        "euler, guidance_scale 3": [[20, 12]],
        "euler, guidance_scale 1": [[20, 20]],
        "euler, guidance_scale 7.5": [[20, 16]],
        "ddim, guidance_scale 3": [[5, 31], [50, 11.5]],
    }
    assert (tmp_path / "steps.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_error_bars_are_the_intervals(tmp_path):
    figure = plot_over_steps(POINTS[3:4], key=FID, file=tmp_path / "steps.png")
    (container,) = figure.axes[0].containers
    ((low, high),) = (segment[:, 1] for segment in container.lines[2][0].get_segments())
    assert (low, high) == pytest.approx((31 - 0.98, 31 + 0.98), abs=1e-3)


def test_json_holds_every_point_and_each_basis_once():
    document = json.loads(json.dumps(to_json(POINTS)))
    assert document["bases"][FID]["space"]["fingerprint"] == "a" * 64
    assert document["bases"][CLIP] | {"space": None} == {
        "space": None,
        "pictures": 300,
        "against": "captions",
    }
    assert len(document["points"]) == 5
    first = document["points"][0]
    assert (first["guidance_scale"], first["num_inference_steps"]) == (3.0, 20)
    assert first["scheduler"] == "euler"
    assert first["measures"][FID]["value"] == 12
    assert first["measures"][FID]["high"] == pytest.approx(12.98, abs=1e-3)


def test_the_table_has_a_line_per_point_intervals_and_notes():
    few = replace(POINTS[1], measures=(replace(POINTS[1].measures[1], notes=("no FID: too few",)),))
    lines = to_markdown([POINTS[0], few]).splitlines()
    assert lines[0] == f"| guidance_scale | num_inference_steps | scheduler | {FID} | {CLIP} |"
    assert lines[2] == "| 3 | 20 | euler | 12 (11.02 to 12.98) | 27 (26.8 to 27.2) |"
    assert lines[3] == "| 1 | 20 | euler | - | 22 (21.8 to 22.2) |"
    assert lines[5] == f"- {FID}: 300 pictures against scenes; 95 % intervals in parentheses"
    assert lines[-1] == f"- {CLIP}: no FID: too few"
    assert keys_of([few, POINTS[0]]) == [CLIP, FID]


def test_points_that_do_not_compare_are_neither_listed_nor_drawn(tmp_path):
    odd = [*POINTS, point(3.0, 20, "heun", fid=9.0, clip=28.0, pictures=3000)]
    file = tmp_path / "plot.png"
    for refused in (
        lambda: to_json(odd),
        lambda: to_markdown(odd),
        lambda: plot_trade_off(odd, fid=FID, clip_score=CLIP, file=file),
        lambda: plot_over_steps(odd, key=FID, file=file),
    ):
        with pytest.raises(ContractError, match="count of pictures differs: 3000 and 300"):
            refused()
    assert not file.exists()


def test_a_key_that_was_not_measured_is_answered_with_those_that_were(tmp_path):
    with pytest.raises(BadFieldError, match=f"'fid_inception' is not allowed; allowed: {FID}"):
        plot_over_steps(POINTS, key="fid_inception", file=tmp_path / "plot.png")
