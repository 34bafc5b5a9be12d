"""The page on performance names what there is, and its commands can be read."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from typer import Typer
from typer.main import get_command

from carrara_services.bench.class_options import read_classes
from carrara_services.bench.commands import bench
from carrara_services.bench.stages import read_stage_settings
from carrara_services.bench.workloads import PRESETS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
PEERS = ROOT / "tests" / "bench" / "peers"
app = Typer()
app.command()(bench)


def commands() -> list[list[str]]:
    """Each command of the page's blocks, as its words."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix("carrara up -- ")) for line in lines]


def test_bench_takes_the_options_of_the_page() -> None:
    command = get_command(app)
    found = [words[2:] for words in commands() if words[:2] == ["carrara", "bench"]]
    assert len(found) > 5
    for options in found:
        given = command.make_context("bench", options).params
        read_classes(given["classes"] or [])
        read_stage_settings(given["serve"] or [])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that runs peers."""
    monkeypatch.syspath_prepend(str(PEERS))
    # By its file: docs/studies/ has a module of the same name.
    spec = importlib.util.spec_from_file_location("peers_run", PEERS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "peers_run", run)  # dataclasses look there
    spec.loader.exec_module(run)
    return run


def test_the_script_that_runs_peers_takes_the_options_of_the_page(run: ModuleType) -> None:
    script = "tests/bench/peers/run.py"
    found = [words[words.index(script) + 1 :] for words in commands() if script in words]
    assert len(found) > 3
    for options in found:
        chosen = run.read_arguments(options)
        for name, numbers in chosen.workload or [("uniform", {})]:
            assert run.workload_from((name, numbers), chosen).name.startswith(name)
        for option in chosen.carrara or []:
            run.carrara_from(option, resources=None)
    makes = [words[1] for words in commands() if words[0].endswith("make_env.sh")]
    assert sorted(makes) == sorted(server.environment for server in run.SERVERS.values())


def test_a_workload_has_callers_requests_and_steps_of_its_own(run: ModuleType) -> None:
    options = ["--workload", "uniform callers=3 requests=5 steps=2", "--workload", "mixed"]
    chosen = run.read_arguments([*options, "--requests", "7", "--workload", "burst"])
    works = [run.workload_from(option, chosen) for option in chosen.workload]
    first, second, third = works
    assert first.name == "uniform callers=3 requests=5 steps=2"
    assert (first.arrivals.callers, first.request_count) == (3, 5)
    assert [each.settings["num_inference_steps"] for each in first.classes] == [2]
    assert (second.arrivals.callers, second.request_count) == (16, 7)
    assert run.sittings(works) == [[first, second], [third]], "an open loop is a turn of its own"


@pytest.mark.parametrize("option", ["idle", "uniform callers", "uniform callers=x", "uniform a=1"])
def test_a_workload_that_cannot_be_read_is_refused(
    run: ModuleType, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.read_arguments(["--workload", option])
    assert option.split()[-1] in capsys.readouterr().err


def test_with_keep_running_a_contender_is_started_once(run: ModuleType) -> None:
    told: list[str] = []

    @contextlib.contextmanager
    def start() -> Iterator[str]:
        told.append("started")
        yield "running"
        told.append("ended")

    with contextlib.ExitStack() as kept:
        contender = run.started_once(run.Contender("a", start), kept)
        for _ in range(2):
            with contender.start() as running:
                assert running == "running"
        assert told == ["started"]
    assert told == ["started", "ended"]


def test_every_workload_and_every_peer_has_its_line() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in (*PRESETS, "diffusers", *(path.stem for path in PEERS.glob("requirements/*.txt"))):
        assert name == "pipeline" or f"| `{name}` |" in page, name


def test_every_link_of_the_page_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
