"""What Carrara is compared with paints what diffusers paints, and is driven and named honestly."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carrara_services.bench.load import run_load
from carrara_services.bench.summaries import Summary, summarize
from carrara_services.bench.workloads import PaintRequest, RequestClass, workload_of
from oracle import paint_with_diffusers
from tiny_checkpoints import build_sd1
from unit.services.bench.toy_target import ToyTarget

PEERS = Path(__file__).resolve().parents[1] / "bench" / "peers"
MODULES = ("painting", "targets", "contenders", "pictures", "ratios")


@pytest.fixture(scope="module")
def peers() -> Iterator[SimpleNamespace]:
    """The scripts' modules by name, imported as they are when one is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PEERS))
        yield SimpleNamespace(**{name: import_module(name) for name in MODULES})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


@pytest.fixture(scope="module")
def painter(peers: SimpleNamespace, checkpoint: Path) -> Any:
    return peers.painting.Painter(checkpoint, peers.painting.Computing(num_threads=1))


def request(index: int = 0, **settings: object) -> PaintRequest:
    return PaintRequest(index, "a", "large red circle", index, settings, None)


def test_a_group_is_what_the_pipeline_paints_alone_whatever_shares_the_batch(
    peers: SimpleNamespace, painter: Any, checkpoint: Path
) -> None:
    wanted = [
        peers.painting.Wanted("large red circle", 2, scale, seed, scheduler)
        for seed, (scale, scheduler) in enumerate([(4.0, None), (1.0, None), (4.0, "euler")] * 2)
    ]
    assert len({each.group for each in wanted}) == 3
    for each, painted in zip(wanted, painter.paint(wanted), strict=True):
        expected = paint_with_diffusers(
            checkpoint,
            each.prompt,
            seed=each.seed,
            scheduler=each.scheduler,
            num_inference_steps=2,
            guidance_scale=each.guidance_scale,
        )
        apart = np.abs(np.asarray(painted).astype(int) - expected)
        assert apart.max() <= 1, "rows that share a call may round otherwise"
        (alone,) = painter.paint([each])
        np.testing.assert_array_equal(np.asarray(alone), expected)


async def test_diffusers_in_this_process_paints_a_burst_one_after_the_other(
    peers: SimpleNamespace, checkpoint: Path
) -> None:
    target = peers.targets.DiffusersTarget(
        checkpoint, peers.painting.Computing(num_threads=1), cpus=None
    )
    classes = (RequestClass("a", settings={"num_inference_steps": 1, "guidance_scale": 1.0}),)
    work = workload_of("burst", classes=classes, request_count=3)
    records = await run_load(target, work, timeout_seconds=60)
    assert [(r.request.index, r.ending) for r in records] == [(i, "painted") for i in range(3)]
    late = await target.paint(request(num_inference_steps=9, guidance_scale=1.0), timeout_seconds=0)
    assert late.ending == "timed out"
    await target.aclose()


class _ToyServer(BaseHTTPRequestHandler):
    """Answers with the status that the seed says, and a picture of one pixel."""

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if wanted["seed"] == 1:
            time.sleep(1)
        self.send_response(wanted["seed"] if wanted["seed"] >= 200 else 200)
        self.end_headers()
        file = io.BytesIO()
        Image.new("RGB", (1, 1), (1, 2, 3)).save(file, format="PNG")
        self.wfile.write(file.getvalue())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("status", "ending"),
    [(200, "painted"), (429, "refused"), (503, "refused"), (504, "timed out"), (500, "failed")],
)
async def test_a_peers_status_says_how_a_request_ended(
    peers: SimpleNamespace, status: int, ending: str
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _ToyServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        target = peers.targets.HttpTarget(f"http://127.0.0.1:{server.server_port}/generate")
        asked = request(status, num_inference_steps=1, guidance_scale=1.0)
        outcome = await target.paint(asked, timeout_seconds=10)
        assert outcome.ending == ending
        if ending == "painted":
            assert outcome.picture.tolist() == [[[1, 2, 3]]]
        else:
            assert str(status) in str(outcome.error)
        slow = request(1, num_inference_steps=1, guidance_scale=1.0)
        assert (await target.paint(slow, timeout_seconds=0.1)).ending == "timed out"
        server.shutdown()
    gone = await target.paint(asked, timeout_seconds=10)
    assert gone.ending == "failed"
    await target.aclose()


async def test_pictures_come_in_the_order_of_their_requests_whatever_their_classes(
    peers: SimpleNamespace,
) -> None:
    target = ToyTarget(seconds=0.01)
    asked = [replace(request(index), class_name=name) for index, name in enumerate("abab")]
    assert len(await peers.pictures.paint_all(target, asked, timeout_seconds=1)) == 4
    assert target.most_at_once == 2, "of one class"
    target.endings[3] = "refused"
    with pytest.raises(peers.pictures.OtherPictureError, match="b: refused: request 3"):
        await peers.pictures.paint_all(target, asked, timeout_seconds=1)


def test_pictures_of_another_seed_are_no_pictures_of_this_one(
    peers: SimpleNamespace, painter: Any
) -> None:
    wanted = [peers.painting.Wanted("large red circle", 2, 4.0, seed) for seed in (1, 2)]
    one, other = (np.asarray(picture) for picture in painter.paint(wanted))
    near = np.clip(one.astype(int) + 1, 0, 255).astype(np.uint8)
    target = ToyTarget()
    assert peers.pictures.compare([one, near], [one, one], target=target).anywhere == 1
    for pictures in ([other], [one[:32]]):
        with pytest.raises(peers.pictures.OtherPictureError, match=r"where diffusers|differ from"):
            peers.pictures.compare(pictures, [one], target=target)


async def summary_of(seconds: float) -> Summary:
    work = workload_of("uniform", callers=1, request_count=3)
    records = await run_load(ToyTarget(seconds=seconds), work, timeout_seconds=5)
    return summarize(records, class_names=["20-step"], in_time_seconds=5)


async def test_ratios_say_how_many_times_better_the_first_one_is(peers: SimpleNamespace) -> None:
    quick, slow = [await summary_of(0.01) for _ in range(2)], [await summary_of(0.04)] * 2
    for measured in peers.ratios.MEASURED:
        found = peers.ratios.ratio(quick[0], slow[0], measured=measured)
        assert 1.5 < found < 5, measured.name
        assert peers.ratios.ratio(slow[0], quick[0], measured=measured) == pytest.approx(1 / found)
    nothing = summarize([], class_names=[], in_time_seconds=1)
    assert peers.ratios.ratio(quick[0], nothing, measured=peers.ratios.MEASURED[0]) is None

    table = peers.ratios.compare(
        "uniform",
        {"carrara": quick, "peer": slow, "nobody": [nothing] * 2},
        baseline="carrara",
        memory={"carrara": 2_000_000},
        not_run={"other": "not installed"},
    )
    carrara, peer, nobody, other = table.rows
    assert "medians of 2 rounds" in table.title
    assert "x)" in peer[1]
    assert not any("x)" in cell for cell in carrara + nobody)
    assert (carrara[-1], peer[-1]) == ("2", "-")
    assert other[:2] == ("other", "not run: not installed")
    assert {len(row) for row in table.rows} == {len(table.heads)}


def test_a_peer_that_cannot_run_is_named_with_the_reason(
    peers: SimpleNamespace, checkpoint: Path, tmp_path: Path
) -> None:
    resources = peers.contenders.Resources(
        checkpoint=checkpoint,
        computing=peers.painting.Computing(num_threads=1),
        workers=1,
        max_batch_size=4,
        cpus=None,
        environments=tmp_path,
    )
    contender = peers.contenders.peer("litserve", resources=resources)
    not_run = peers.contenders.NotRunError
    with pytest.raises(not_run, match=r"make_env\.sh litserve"), contender.start():
        pass
    environment = tmp_path / "litserve"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    (environment / ".complete").touch()
    why = r"status 1 .* No module named 'litserve'"
    with pytest.raises(not_run, match=why), contender.start():
        pass


def test_every_server_has_an_environment_and_python_reads_all_scripts(
    peers: SimpleNamespace,
) -> None:
    for name, server in peers.contenders.SERVERS.items():
        assert (PEERS / f"{name}_server.py").exists()
        assert (PEERS / "requirements" / f"{server.environment}.txt").exists()
    for script in PEERS.glob("*.py"):
        compile(script.read_text(encoding="utf-8"), script.name, "exec")
    unknown = subprocess.run(
        [PEERS / "make_env.sh", "nobody"], capture_output=True, text=True, check=False
    )
    assert (unknown.returncode, "no peer is called nobody" in unknown.stderr) == (2, True)


def test_modules_are_the_peers_own(peers: SimpleNamespace) -> None:
    for name in MODULES:
        module: ModuleType = getattr(peers, name)
        assert Path(str(module.__file__)).parent == PEERS
