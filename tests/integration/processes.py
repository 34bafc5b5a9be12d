"""Starts stages as real processes, each with a log of its own, and ends them for certain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES = {
    "text-encoder": "carrara_services.text_encoder",
    "generator": "carrara_services.generator",
    "decoder": "carrara_services.decoder",
}
# One thread, so that results compare bit for bit with an oracle that is set to one thread too; no
# pause, as nobody watches the health of these.
FLAGS = ("--num-threads", "1", "--drain-pause-seconds", "0")
_END_SECONDS = 20


@dataclass
class StageProcess:
    """One stage's process; `address` is known once `wait_until_ready` has returned."""

    role: str
    process: subprocess.Popen[str]
    log_path: Path
    address: str = ""

    def wait_until_ready(self) -> None:
        """Reads the ready line; a process that ends without one fails the test with its log."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the {self.role} ended before it was ready:\n{self.log}"
        ready = json.loads(line)
        assert ready["role"] == self.role
        self.address = ready["address"]

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def terminate(self) -> int:
        """Sends SIGTERM and waits; returns the status."""
        self.process.terminate()
        return self.process.wait(_END_SECONDS)


@dataclass
class Cascade:
    """The three stages of one checkpoint."""

    text_encoder: StageProcess
    generator: StageProcess
    decoder: StageProcess


@contextmanager
def starting(role: str, *, checkpoint: Path, flags: Sequence[str] = ()) -> Iterator[StageProcess]:
    """Starts a stage without waiting for it, so that several can start at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "stderr"
        with log_path.open("w") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", MODULES[role], "--checkpoint", str(checkpoint)),
                    *("--bind", "127.0.0.1:0", *FLAGS, *flags),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        try:
            yield StageProcess(role, process, log_path)
        finally:
            process.kill()
            process.communicate()


@contextmanager
def stage_process(
    role: str, *, checkpoint: Path, flags: Sequence[str] = ()
) -> Iterator[StageProcess]:
    """A stage that answers."""
    with starting(role, checkpoint=checkpoint, flags=flags) as stage:
        stage.wait_until_ready()
        yield stage


@contextmanager
def cascade_processes(
    *, text_encoder: Path, generator: Path, decoder: Path, flags: Sequence[str] = ()
) -> Iterator[Cascade]:
    """The three stages, each from a folder of its own, started at the same time."""
    with ExitStack() as stack:
        stages = [
            stack.enter_context(starting(role, checkpoint=checkpoint, flags=flags))
            for role, checkpoint in (
                ("text-encoder", text_encoder),
                ("generator", generator),
                ("decoder", decoder),
            )
        ]
        for stage in stages:
            stage.wait_until_ready()
        yield Cascade(*stages)
