"""The stages in containers, as compose starts them: alone, in numbers, killed, drained, cut off."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from e2e.command_line import PROMPT, carrara
from e2e.compose import PROJECT, ROLES, RUN, Compose, calls, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.containers, pytest.mark.timeout(900)]

PAINT = ("generate", PROMPT, "--seed", "7", "--steps", "8")
SEEDS = "0:35"
METHODS = {"text-encoder": "Encode", "generator": "Generate", "decoder": "Decode"}


@pytest.fixture(scope="module")
def cascade(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """The project with one healthy replica of each stage."""
    with Compose(tmp_path_factory.mktemp("out")) as compose:
        compose.up()
        yield compose


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The picture that this process paints, with as many threads as the containers have."""
    path = tmp_path_factory.mktemp("embedded") / "embedded.png"
    done = carrara(*PAINT, "--output", str(path), CARRARA_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return pixels(path)


@pytest.fixture(scope="module")
def references(cascade: Compose) -> dict[int, str]:
    """The picture of each seed, painted while nothing fails."""
    with cascade.callers("--once", "--seeds", SEEDS, "--callers", "4") as callers:
        reports = callers.join()
    assert [report["error"] for report in reports] == [None] * 36
    references = {report["seed"]: report["sha256"] for report in reports}
    assert len(set(references.values())) == 36, "each seed has a picture of its own"
    return references


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        assert picture.size == (64, 64)
        return picture.tobytes()


def check(reports: list[dict[str, Any]], references: dict[int, str]) -> None:
    """Nothing failed, and every picture is the one that it was before."""
    assert [report["error"] for report in reports if report["error"]] == []
    assert all(report["sha256"] == references[report["seed"]] for report in reports)


def test_the_containers_are_shut_in_and_the_images_hold_no_tools(cascade: Compose) -> None:
    for role in ROLES:
        [container] = cascade.containers(role)
        for command in (["id", "-u"], ["sh", "-c", "echo x > /opt/carrara/x"], ["which", "gcc"]):
            status, output = container.exec_run(command)
            if command[0] == "id":
                assert output.decode().strip() != "0"
            else:
                assert status != 0, output
        status, output = container.exec_run(["carrara", "health", "127.0.0.1:50051"])
        assert (status, output.decode().strip()) == (0, "127.0.0.1:50051 SERVING")
        image = cascade.engine.images.get(f"carrara-{role}")
        print(f"carrara-{role}: {image.attrs['Size'] / 1e6:.0f} MB")
    done = cascade.client("version")
    assert done.returncode == 0, done.stderr
    done = cascade.run(*RUN, "--entrypoint", "python", "client", "-c", "import torch")
    assert "No module named 'torch'" in done.stderr
    print(
        f"carrara-client: {cascade.engine.images.get('carrara-client').attrs['Size'] / 1e6:.0f} MB"
    )


def test_a_picture_equals_the_one_of_a_single_process(cascade: Compose, painted: bytes) -> None:
    done = cascade.client(*PAINT, "--output", "/out/served.png", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [stage["attempts"] for stage in report["stages"]] == [1, 1, 1]
    assert pixels(cascade.folder / "served.png") == painted


def test_a_replica_that_comes_later_gets_traffic(
    cascade: Compose, references: dict[int, str]
) -> None:
    [first] = cascade.containers("generator")
    with cascade.callers("--seeds", SEEDS) as callers:
        callers.wait_for(12)
        cascade.up({"generator": 2})
        [second] = [each for each in cascade.containers("generator") if each.id != first.id]
        wait_until(lambda: calls(second, "Generate") >= 5, "jobs of the new replica", seconds=60)
        before = calls(first, "Generate")
        wait_until(lambda: calls(first, "Generate") > before, "jobs of the old one too")
    check(callers.join(), references)


@pytest.mark.parametrize("role", ROLES)
def test_killing_a_replica_under_12_callers_fails_no_request(
    cascade: Compose, references: dict[int, str], role: str
) -> None:
    cascade.up({role: 2})
    victim, other = cascade.containers(role)
    with cascade.callers("--seeds", SEEDS) as callers:
        wait_until(
            lambda: min(calls(victim, METHODS[role]), calls(other, METHODS[role])) >= 3,
            "calls of both replicas",
            seconds=120,
        )
        victim.kill("SIGKILL")
        killed = time.time()
        victim.reload()
        assert (victim.status, victim.attrs["State"]["ExitCode"]) == ("exited", 137)
        callers.wait_for(24)
    reports = callers.join()
    spanning = [report for report in reports if report["started"] < killed < report["ended"]]
    assert spanning, "requests were under way when it was killed"
    check(reports, references)


def test_stopping_a_replica_under_12_callers_is_not_noticed(
    cascade: Compose, references: dict[int, str]
) -> None:
    cascade.up({"generator": 2})
    leaving, staying = cascade.containers("generator")
    with cascade.callers("--seeds", SEEDS) as callers:
        wait_until(
            lambda: min(calls(leaving, "Generate"), calls(staying, "Generate")) >= 3,
            "calls of both replicas",
            seconds=120,
        )
        leaving.stop(timeout=120)
        leaving.reload()
        assert (leaving.status, leaving.attrs["State"]["ExitCode"]) == ("exited", 0)
        callers.wait_for(12)
    check(callers.join(), references)


def test_a_decoder_cut_off_is_a_typed_error_in_time_and_comes_back_to_the_same_client(
    cascade: Compose, references: dict[int, str]
) -> None:
    cascade.up()
    [decoder] = cascade.containers("decoder")
    [network] = cascade.engine.networks.list(names=[f"{PROJECT}_cascade"])
    with cascade.callers("--seeds", SEEDS, "--callers", "1") as callers:
        callers.wait_for(3)
        network.disconnect(decoder)
        network.reload()
        assert decoder.id not in network.attrs["Containers"]
        try:
            wait_until(
                lambda: any(report["error"] for report in callers.reports), "an error", seconds=90
            )
        finally:
            network.connect(decoder, aliases=["decoder"])
        mended = time.time()
        wait_until(
            lambda: any(
                report["started"] > mended and not report["error"] for report in callers.reports
            ),
            "a picture without a restart of the client",
            seconds=90,
        )
    reports = callers.join()
    errors = [report for report in reports if report["error"]]
    for report in errors:
        assert report["error"].startswith("StageUnavailableError"), report
        assert "decoder dns:///decoder:50051" in report["error"]
        assert report["ended"] - report["started"] < 60, "before the request's own deadline"
    check([report for report in reports if not report["error"]], references)
    print(f"told after {errors[0]['ended'] - errors[0]['started']:.1f} s")


def test_prometheus_finds_and_scrapes_every_replica(cascade: Compose) -> None:
    cascade.up({"generator": 2})
    cascade.must("--profile", "watch", "up", "--detach", "--no-recreate", "prometheus")

    def ask(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:9090/api/v1/{path}", timeout=5) as page:
                return json.load(page)["data"]
        except OSError:
            return {"activeTargets": [], "result": []}

    def up() -> list[str]:
        targets = ask("targets")["activeTargets"]
        return sorted(each["labels"]["service"] for each in targets if each["health"] == "up")

    wanted = ["decoder", "generator", "generator", "text-encoder"]
    wait_until(lambda: up() == wanted, f"targets {wanted}", seconds=90)
    done = cascade.client(*PAINT, "--output", "/out/watched.png")
    assert done.returncode == 0, done.stderr
    query = "query?query=sum(carrara_steps_total)"
    wait_until(lambda: any(float(r["value"][1]) >= 8 for r in ask(query)["result"]), "its steps")


def test_down_and_up_again_with_published_ports_paints_the_same_picture(
    cascade: Compose, painted: bytes, tmp_path: Path
) -> None:
    cascade.down()
    assert not any(cascade.containers(role) for role in ROLES)
    path = tmp_path / "published.png"
    addresses = [
        part for i, role in enumerate(ROLES) for part in (f"--{role}", f"127.0.0.1:{50051 + i}")
    ]
    with Compose(tmp_path, overrides=["publish"]) as published:
        began = time.monotonic()
        published.up()
        print(f"three stages healthy after {time.monotonic() - began:.1f} s")
        done = carrara(*PAINT, "--output", str(path), *addresses, timeout=120)
    assert done.returncode == 0, done.stderr
    assert pixels(path) == painted


def test_the_gpu_override_gives_each_stage_a_gpu_of_its_own(tmp_path: Path) -> None:
    import yaml

    with Compose(tmp_path, overrides=["gpu"]) as compose:
        services = yaml.safe_load(compose.must("config"))["services"]
    devices = []
    for role in ROLES:
        [device] = services[role]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
        devices += device["device_ids"]
        assert services[role]["environment"]["CARRARA_DEVICE"] == "cuda"
        assert services[role]["build"]["args"]["TORCH_INDEX_URL"].endswith("cu130")
        assert services[role]["build"]["target"] == role
    assert len(set(devices)) == 3
