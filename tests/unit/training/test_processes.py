"""Several processes train as one does: the same losses, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

RECIPE = (
    *("--set", "shape.layers=1", "--set", "shape.heads=2", "--set", "shape.head_dim=8"),
    *("--set", "loop.steps=4", "--set", "loop.batch_size=8", "--set", "loop.warmup_steps=1"),
    *("--set", "loop.bfloat16=false"),
    *("--workers", "0", "--log-every", "1", "--save-every", "2", "--sample-every", "2"),
)


def train(launcher: list[str], output: Path, clip: Path, *more: str) -> str:
    carrara = str(Path(sys.executable).with_name("carrara"))
    return subprocess.run(
        [*launcher, carrara, "train", "prior", "-o", str(output), "--set", f"clip={clip}", *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
    ).stderr


def losses_of(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_two_processes_see_the_same_losses_and_one_writes(runs: Any, tmp_path: Path) -> None:
    clip = runs.of("clip")
    launcher = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0"),
    ]
    train([], tmp_path / "one", clip, *RECIPE)
    stderr = train(launcher, tmp_path / "two", clip, *RECIPE, "--stop-at", "2")
    assert stderr.count("step 1/2") == 1
    train(launcher, tmp_path / "two", clip, "--resume", *RECIPE[-8:])
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-4)
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 2  # one for each start
    one, two = (
        load_file(tmp_path / run / "prior" / "diffusion_pytorch_model.safetensors")
        for run in ("one", "two")
    )
    assert one.keys() == two.keys()
