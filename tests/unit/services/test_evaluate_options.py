"""What `carrara evaluate` makes of several values, and of stored reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer

from carrara.exceptions import MissingExtraError
from carrara_models.errors import BadFieldError, CheckpointError
from carrara_models.evaluation.estimates import Estimate
from carrara_models.evaluation.measures import Basis, Measure
from carrara_models.evaluation.sweeps import SweepPoint
from carrara_services.evaluate.report import check_plot, plot, read_reports, report
from carrara_services.evaluate.sweep_options import read_sweep


def point(key: str = "all_right", *, checkpoint: str = "drawn", **settings: object) -> SweepPoint:
    measure = Measure(key, Estimate(0.5, 0.4, 0.6), Basis(None, 9, "scenes"), 0.1, 0.9)
    calls = settings.get("num_inference_steps", 3)
    return SweepPoint(checkpoint, settings, calls, 1.0, (measure,))  # type: ignore[arg-type]


def test_values_make_all_combinations_the_last_option_running_fastest() -> None:
    named = {"num_inference_steps": "5, 10", "guidance_scale": None, "scheduler": "ddim,heun"}
    assert read_sweep(named, ["super_res_noise_level=75"]) == [
        {"num_inference_steps": steps, "scheduler": scheduler, "super_res_noise_level": 75}
        for steps in (5, 10)
        for scheduler in ("ddim", "heun")
    ]
    assert read_sweep({}, []) == [{}]


def test_commas_part_numbers_and_schedulers_and_neither_texts_nor_sizes() -> None:
    assert read_sweep({}, ["prior_guidance_scale=1,4"]) == [
        {"prior_guidance_scale": 1.0},
        {"prior_guidance_scale": 4.0},
    ]
    assert len(read_sweep({}, ["prior_scheduler=ddpm,ddim"])) == 2
    assert read_sweep({}, ["negative_prompt=blurred, dull"]) == [
        {"negative_prompt": "blurred, dull"}
    ]
    assert read_sweep({}, ["original_size=64,32"]) == [{"original_size": (64, 32)}]


@pytest.mark.parametrize(
    ("named", "more", "message"),
    [
        ({"guidance_scale": "1,high"}, [], "'1,high': could not convert"),
        ({"num_inference_steps": "5,"}, [], "'5,'"),
        ({}, ["strength=3"], "there is no setting 'strength'"),
        ({}, ["guidance_scale"], "'guidance_scale' is not NAME=VALUE"),
        ({"guidance_scale": "1"}, ["guidance_scale=2"], "guidance_scale is given twice"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name_and_value(
    named: dict[str, str], more: list[str], message: str
) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        read_sweep(named, more)


def test_a_report_of_one_point_has_settings_and_scores_at_its_top() -> None:
    (one, other) = point(guidance_scale=1.0), point(guidance_scale=2.0)
    document = report([one], checkpoint="drawn", seed=3, captions=9)
    assert document["settings"] == {"guidance_scale": 1.0, "seed": 3}
    assert document["scores"] == {"all_right": {"score": 0.5, "floor": 0.1, "ceiling": 0.9}}
    assert (document["captions"], len(document["points"])) == (9, 1)
    assert "scores" not in report([one, other], checkpoint="drawn", seed=3)


def test_reports_are_read_back_in_their_order_and_other_files_named(tmp_path: Path) -> None:
    points = [point(checkpoint=name, guidance_scale=1.0) for name in ("one", "other")]
    files = [tmp_path / f"{each.checkpoint}.json" for each in points]
    for file, each in zip(files, points, strict=True):
        file.write_text(json.dumps(report([each], checkpoint=each.checkpoint, seed=0)))
    assert read_reports(files) == points
    files[0].write_text("{}")
    with pytest.raises(CheckpointError, match=r"one\.json: It is no report of measures"):
        read_reports(files)


@pytest.mark.parametrize(
    ("name", "points", "allowed"),
    [
        ("plot.bmp", 2, "ends in .pdf, .png, .svg"),
        ("nowhere/plot.png", 2, "in a folder that exists"),
        ("plot.png", 1, "with several values of a setting, or --compare"),
    ],
)
def test_what_could_not_be_drawn_is_refused_first(
    tmp_path: Path, name: str, points: int, allowed: str
) -> None:
    check_plot(tmp_path / "plot.svg", points=2)
    with pytest.raises(BadFieldError, match=allowed):
        check_plot(tmp_path / name, points=points)


def test_without_matplotlib_the_pip_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "carrara_models.evaluation.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(MissingExtraError, match=r"--plot needs matplotlib.*'carrara\[train\]'"):
        check_plot(tmp_path / "plot.png", points=2)


def test_without_fid_and_clip_score_measures_are_drawn_over_calls(tmp_path: Path) -> None:
    points = [point(num_inference_steps=steps, guidance_scale=1.0) for steps in (3, 5)]
    plot(points, tmp_path / "calls.svg")
    assert "network calls" in (tmp_path / "calls.svg").read_text(encoding="utf-8")
