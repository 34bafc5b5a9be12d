"""`carrara bench` against real services: processes of its own, in this process, at addresses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from carrara.exceptions import InvalidArgumentError
from carrara_services import embedded
from carrara_services.bench.commands import bench
from families import unconditional
from tiny_checkpoints import build_sd2

app = Typer()
app.command()(bench)
QUICK = "quick share=3 num_inference_steps=1 guidance_scale=1"
SLOW = "slow num_inference_steps=3 guidance_scale=4 scheduler=euler"
MIX = ("--class", QUICK, "--class", SLOW)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd2(tmp_path_factory.mktemp("sd2"))


@pytest.fixture(scope="module")
def addresses(checkpoint: Path) -> Iterator[list[str]]:
    stages = embedded.start(checkpoints=[str(checkpoint)], num_threads=1)
    yield [
        *("--text-encoder", stages.text_encoders[0], "--generator", stages.generators[0]),
        *("--decoder", stages.decoders[0]),
    ]
    stages.close()


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def written(file: Path, *arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json", file)
    assert result.exit_code == 0, (result.output, result.exception)
    document = json.loads(file.read_text())
    assert isinstance(document, dict)
    return document


def test_a_closed_loop_measures_processes_that_it_starts_and_ends(
    checkpoint: Path, tmp_path: Path
) -> None:
    document = written(
        tmp_path / "bench.json",
        *("--checkpoint", checkpoint, "--num-threads", 1, "--serve", "max_batch_rows=8", *MIX),
        *("--callers", 3, "--requests", 9, "--warm-up", 2, "--seed", 5, "--records"),
        *("--markdown", tmp_path / "bench.md", "--plot", tmp_path / "bench.png"),
    )
    assert document["started"] == "processes"
    assert document["workload"]["arrivals"] == {"kind": "closed", "callers": 3}
    assert [each["name"] for each in document["workload"]["classes"]] == ["quick", "slow"]
    stages = {stage["role"]: stage for stage in document["stages"]}
    assert list(stages) == ["text-encoder", "generator", "decoder"]
    assert {stage["numerics"] for stage in document["stages"]} == {"exact"}
    assert {stage["num_threads"] for stage in document["stages"]} == {1}
    assert stages["generator"]["max_batch_rows"] == 8
    assert stages["generator"]["versions"]["torch"]

    summary = document["summary"]
    everything, *classes = summary["classes"]
    assert [each["name"] for each in summary["classes"]] == ["all", "quick", "slow"]
    assert (everything["offered"], everything["painted"], everything["failed"]) == (9, 9, {})
    assert [each["painted"] for each in classes] == [each["offered"] for each in classes]
    assert 0 < everything["first_step"]["p50"] < everything["latency"]["p50"] < 60
    assert summary["images_per_second"] == pytest.approx(9 / summary["seconds"])
    assert [stage["attempts"] for stage in summary["stages"]] == [9, 9, 9]
    assert 0 < summary["computed"] < summary["explained"] < summary["called"] <= 1

    assert [each["of"] for each in document["memory"]] == list(stages)
    assert all(each["peak_bytes"] > 2**26 for each in document["memory"])
    records = document["records"]
    assert [record["index"] for record in records] == list(range(9))
    assert [record["seed"] for record in records] == list(range(5, 14))
    assert all(record["sent"] < record["first_step"] < record["ended"] for record in records)

    assert "| generator |" in (tmp_path / "bench.md").read_text()
    with Image.open(tmp_path / "bench.png") as figure:
        assert figure.width > 100


def test_an_open_loop_asks_a_running_cascade_for_the_very_same_again(
    addresses: list[str], tmp_path: Path
) -> None:
    arguments = (*addresses, "--workload", "poisson", "--rate", 50, "--requests", 6, *MIX)
    one, other = (
        written(tmp_path / f"{name}.json", *arguments, "--warm-up", 1, "--records")
        for name in ("one", "other")
    )
    assert one["started"] is None
    assert one["workload"]["arrivals"] == {"kind": "poisson", "rate": 50}
    assert one["requests_sha256"] == other["requests_sha256"]
    asked = [
        [(r["class"], r["prompt"], r["scheduled"]) for r in document["records"]]
        for document in (one, other)
    ]
    assert asked[0] == asked[1]
    assert one["memory"] == [{"of": "stages", "peak_bytes": None, "source": "no --metrics given"}]


@pytest.mark.parametrize("clients", [1, 6])
def test_a_full_queue_is_counted_as_refusals_which_are_no_failures(
    checkpoint: Path, tmp_path: Path, clients: int
) -> None:
    document = written(
        tmp_path / "bench.json",
        *("--checkpoint", checkpoint, "--in-process", "--num-threads", 1),
        *("--serve", "max_queue_jobs=2", "--serve", "max_batch_rows=2", "--class", QUICK),
        *("--workload", "burst", "--requests", 12, "--warm-up", 0, "--clients", clients),
    )
    assert (document["started"], document["clients"]) == ("in this process", clients)
    assert document["stages"][1]["max_queue_jobs"] == 2
    everything = document["summary"]["classes"][0]
    assert everything["refused"] > 0
    assert everything["painted"] > 0
    assert everything["painted"] + everything["refused"] == 12
    assert (everything["failed"], everything["timed_out"]) == ({}, 0)
    assert everything["refusal"]["p50"] < 60
    assert [each["of"] for each in document["memory"]] == ["this process"]


def test_what_comes_too_late_is_not_in_time_and_what_times_out_is_not_painted(
    addresses: list[str], tmp_path: Path
) -> None:
    quick = (*addresses, "--class", QUICK, "--requests", 4, "--callers", 2, "--warm-up", 0)
    late = written(tmp_path / "late.json", *quick, "--in-time-seconds", 1e-6)
    everything = late["summary"]["classes"][0]
    assert (everything["painted"], everything["painted_in_time"]) == (4, 0)
    assert late["summary"]["images_in_time_per_second"] == 0

    result = run(*quick, "--timeout-seconds", 1e-3, "--json", tmp_path / "timed-out.json")
    assert result.exit_code == 1, "nothing was painted"
    everything = json.loads((tmp_path / "timed-out.json").read_text())["summary"]["classes"][0]
    assert (everything["timed_out"], everything["painted"]) == (4, 0)
    assert everything["latency"] is None


def test_a_cascade_without_text_is_put_under_load_too(tmp_path: Path) -> None:
    (folder,) = unconditional.DDPM.folders
    document = written(
        tmp_path / "bench.json",
        *("--checkpoint", folder, "--in-process", "--class", "two num_inference_steps=2"),
        *("--requests", 2, "--warm-up", 0),
    )
    assert document["summary"]["classes"][0]["painted"] == 2


def test_a_setting_that_the_cascade_refuses_ends_all_at_once(addresses: list[str]) -> None:
    result = run(*addresses, "--class", "odd height=33")
    assert isinstance(result.exception, InvalidArgumentError)
    assert "a multiple of" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "poisson"], "poisson needs it"),
        (["--rate", "3"], "arrivals of uniform have no rate"),
        (["--class", "quick strength=3"], "there is no setting 'strength'"),
        (["--checkpoint", "a", "--cascade", "b"], "exclude one another"),
        (["--checkpoint", "nowhere", "--in-process"], "nowhere"),
        (["--checkpoint", "a", "--metrics", "host:1"], "of stages that run already"),
        (["--generator", "host:1", "--serve", "dtype=x"], "of stages that are started here"),
        (["--serve", "bind=host:1"], "NAME=VALUE of device"),
        (["--records"], "--records needs --json FILE"),
        (["--json", "nowhere/bench.json"], "in no folder that exists"),
        (["--plot", "plot.bmp"], "ends in .pdf, .png, .svg"),
    ],
)
def test_bad_arguments_end_with_status_2_before_anything_is_started(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    result = run(*arguments)
    assert result.exit_code == 2, result.exception
    assert message in result.output
