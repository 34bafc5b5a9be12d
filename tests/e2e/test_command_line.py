"""The command line as the README shows it, against real processes and the embedded checkpoint."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from e2e.command_line import CARRARA, PROMPT, carrara

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_up_runs_a_command_against_three_processes_and_ends_them(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    done = carrara(
        "up", "--", CARRARA, "generate", PROMPT, "--output", str(path), "--seed", "7", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report) == {
        "prompt",
        "images",
        "num_inference_steps",
        "guidance_scale",
        "scheduler",
        "numerics",
        "stages",
        "total_ms",
        "warnings",
    }
    assert report["images"] == [{"path": str(path), "seed": 7, "width": 64, "height": 64}]
    assert [stage["role"] for stage in report["stages"]] == [
        "text-encoder",
        "generator",
        "decoder",
    ]
    assert len({stage["address"] for stage in report["stages"]}) == 3
    for stage in report["stages"]:
        assert carrara("health", stage["address"], timeout=60).returncode == 1, "it was ended"
    with Image.open(path) as picture:
        assert picture.size == (64, 64)


def test_the_picture_shows_what_the_prompt_says(tmp_path: Path) -> None:
    import numpy as np

    from carrara_models.drawn_world.checker import read_picture

    path = tmp_path / "picture.png"
    done = carrara("generate", PROMPT, "--output", str(path), "--seed", "7")
    assert done.returncode == 0, done.stderr
    with Image.open(path) as picture:
        reading = read_picture(np.asarray(picture.convert("RGB")))
    assert reading.background == "white"
    circle, square = sorted(reading.objects, key=lambda thing: thing.y)
    assert (circle.size, circle.colour, circle.shape) == ("large", "red", "circle")
    assert (square.size, square.colour, square.shape) == ("small", "blue", "square")


def test_embedded_and_served_pictures_are_equal(tmp_path: Path) -> None:
    served, embedded = tmp_path / "served.png", tmp_path / "embedded.png"
    common = ["generate", PROMPT, "--seed", "3", "--num-inference-steps", "4"]
    done = carrara("up", "--num-threads", "1", "--", CARRARA, *common, "--output", str(served))
    assert done.returncode == 0, done.stderr
    done = carrara(*common, "--output", str(embedded), CARRARA_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    with Image.open(served) as left, Image.open(embedded) as right:
        assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)], ids=["ctrl-c", "sigterm"]
)
def test_a_signal_to_up_ends_the_stages(number: signal.Signals, status: int) -> None:
    flags = ("--text-encoder", "--generator", "--decoder")
    with subprocess.Popen([CARRARA, "up"], stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        words: list[str] = []
        for line in up.stdout:
            words += line.split()
            if "Ctrl-C" in line:
                break
        addresses = [words[words.index(flag) + 1] for flag in flags]
        assert all(carrara("health", address).returncode == 0 for address in addresses)
        up.send_signal(number)
        assert up.wait(timeout=60) == status
    assert all(carrara("health", address).returncode == 1 for address in addresses)
