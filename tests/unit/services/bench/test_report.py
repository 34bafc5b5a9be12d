from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from carrara_services.bench.memory import PeakMemory
from carrara_services.bench.plots import plot_latencies
from carrara_services.bench.report import document, lines_of, machine, tables_of
from carrara_services.bench.runs import Run, measure
from carrara_services.bench.workloads import RequestClass, workload_of
from unit.services.bench.toy_target import ToyTarget

UNKNOWN = [PeakMemory("stages", None, "no --metrics given")]


@pytest.fixture
async def run() -> Run:
    """Two classes, of which one is painted and the other refused or failed."""
    classes = (RequestClass("a"), RequestClass("b"))
    target = ToyTarget(endings={1: "refused", 2: "failed"})
    work = workload_of("burst", classes=classes, request_count=6)
    return await measure(target, work, warm_up_count=0, timeout_seconds=5, in_time_seconds=5)


def test_tables_have_a_line_for_all_and_one_for_each_class(run: Run) -> None:
    (requests,) = tables_of(run.summary)  # no stage told anything
    assert [row[0] for row in requests.rows] == ["all", "a", "b"]
    assert requests.rows[0][1:7] == ("6", "4", "4", "1", "0", "1")
    lines = requests.to_markdown().splitlines()
    assert lines[2].startswith("| class | offered |")
    assert {line.count("|") for line in lines[2:]} == {len(requests.heads) + 1}


def test_lines_tell_what_failed_how_long_a_refusal_took_and_what_is_unknown(run: Run) -> None:
    text = "\n".join(lines_of(run, memory=UNKNOWN, in_time_seconds=5))
    assert "in time (within 5 s)" in text
    assert "4 of 6 offered" in text
    assert "A refusal took 0.00" in text
    assert "Failed: RuntimeError: request 2" in text
    assert "Memory at most: stages unknown (no --metrics given)" in text
    assert "Calls to stages" not in text


def test_the_document_is_json_and_has_requests_only_where_they_are_wanted(run: Run) -> None:
    for with_records in (False, True):
        whole = document(run, memory=UNKNOWN, with_records=with_records, machine=machine())
        assert json.loads(json.dumps(whole))["workload"]["arrivals"] == {"kind": "burst"}
        assert len(whole.get("records", [])) == (6 if with_records else 0)
    assert [each["index"] for each in whole["records"]] == list(range(6))
    assert whole["machine"]["cpu_count"] >= 1


def test_a_figure_is_drawn_of_painted_and_of_refused_requests(run: Run, tmp_path: Path) -> None:
    figure = plot_latencies(run.records, class_names=["a", "b"], file=tmp_path / "plot.png")
    shares, course = figure.axes
    painted = {r.request.class_name for r in run.records if r.ending == "painted"}
    assert len(shares.lines) == len(painted)
    assert sum(len(dots.get_offsets()) for dots in course.collections) == 6
    with Image.open(tmp_path / "plot.png") as drawn:
        assert drawn.width > 100
    plot_latencies([], class_names=["a"], file=tmp_path / "empty.svg")
