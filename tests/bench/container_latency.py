"""What containers add to a request: the same callers against processes and against containers.

    PYTHONPATH=tests python tests/bench/container_latency.py

Needs the images (`docker compose --profile tools build`) and an engine. One caller, one thread a
stage, each round with both in turn; prints the median request of each and their difference.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from e2e.command_line import CARRARA
from e2e.compose import CALLERS, Compose

ROUNDS = 3
WORK = ("--once", "--seeds", "0:24", "--callers", "1", "--steps", "8")
# The first ones of a run connect and warm caches.
SKIPPED = 5


def of_processes() -> list[float]:
    """Seconds of each request through three processes of this machine."""
    up = [CARRARA, "up", "--num-threads", "1", "--"]
    command = [*up, sys.executable, str(CALLERS), "--prompts-from-seed", *WORK]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [report["ended"] - report["started"] for report in reports[SKIPPED:]]


def of_containers(compose: Compose) -> list[float]:
    """Seconds of each request through three containers, from a fourth."""
    compose.up()
    with compose.callers(*WORK) as callers:
        reports = callers.join()
    compose.must("down")
    return [report["ended"] - report["started"] for report in reports[SKIPPED:]]


def main() -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as folder, Compose(Path(folder)) as compose:
        processes, containers = [], []
        for _ in range(ROUNDS):
            processes += of_processes()
            containers += of_containers(compose)
    for name, seconds in (("processes", processes), ("containers", containers)):
        print(f"{name}: median {statistics.median(seconds) * 1e3:.1f} ms of {len(seconds)}")
    added = statistics.median(containers) - statistics.median(processes)
    print(f"containers add {added * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
