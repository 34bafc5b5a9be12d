"""Drives docker-compose.yml, and looks at its containers through the engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container

ROOT = Path(__file__).parents[2]
PROJECT = "carrara-e2e"
ROLES = ("text-encoder", "generator", "decoder")
CALLERS = ROOT / "tests" / "callers.py"
# Short, so that a test need not wait for minutes; the images and the files are those of users.
SETTINGS = {"CARRARA_DRAIN_PAUSE_SECONDS": "2", "CARRARA_MAX_CONNECTION_AGE_SECONDS": "5"}
HEALTHY_SECONDS = 180


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    """Waits for something to happen, and fails the test if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {seconds:g} s: {what}"
        time.sleep(0.2)


def compose_command() -> list[str]:
    """The second compose where the engine's client has it, else the first."""
    docker_cli = shutil.which("docker")
    if docker_cli:
        asked = subprocess.run([docker_cli, "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return [docker_cli, "compose"]
    first = shutil.which("docker-compose")
    assert first, "neither `docker compose` nor `docker-compose` is installed"
    return [first]


class Compose:
    """One project of the compose file.

    Attributes:
        folder: What the client's container sees as /out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = docker.from_env()
        self._command = compose_command()
        self._environment = {
            **os.environ,
            **SETTINGS,
            "CARRARA_OUTPUT_DIR": str(folder),
            "CARRARA_UID": str(os.getuid()),
            "CARRARA_GID": str(os.getgid()),
        }

    def arguments(self, *arguments: str, files: Sequence[str] = ()) -> list[str]:
        """The command line of compose."""
        chosen = [part for name in ("docker-compose.yml", *files) for part in ("-f", name)]
        return [*self._command, "-p", PROJECT, *chosen, *arguments]

    def run(
        self, *arguments: str, files: Sequence[str] = (), seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Runs compose to its end."""
        return subprocess.run(
            self.arguments(*arguments, files=files),
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def must(self, *arguments: str, files: Sequence[str] = (), seconds: float = 300) -> str:
        """Runs compose, which has to succeed; returns what it printed."""
        done = self.run(*arguments, files=files, seconds=seconds)
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def up(self, *, files: Sequence[str] = (), **scale: int) -> None:
        """Starts the stages in the given numbers, one of each not named, and waits for health."""
        scales = [f"{role}={scale.get(role.replace('-', '_'), 1)}" for role in ROLES]
        options = [part for number in scales for part in ("--scale", number)]
        self.must("up", "--detach", *options, *ROLES, files=files)
        for role in ROLES:
            wanted = scale.get(role.replace("-", "_"), 1)
            wait_until(
                lambda role=role, wanted=wanted: self.healthy(role) == wanted,
                f"{wanted} healthy {role}",
                seconds=HEALTHY_SECONDS,
            )

    def containers(self, role: str) -> list[Container]:
        """Of one role, running or not."""
        labels = [f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={role}"]
        found = self.engine.containers.list(all=True, filters={"label": labels})
        # `docker compose run` makes containers of the same labels.
        return [each for each in found if each.labels["com.docker.compose.oneoff"] == "False"]

    def healthy(self, role: str) -> int:
        """How many containers of one role are healthy."""
        return sum(health(each) == "healthy" for each in self.containers(role))

    def client(self, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Runs the command line in the client's container."""
        return self.run("run", "--rm", "-T", "client", *arguments, seconds=seconds)

    @contextmanager
    def callers(self, *arguments: str) -> Iterator[Callers]:
        """Callers in the client's container, for as long as the block lasts."""
        command = self.arguments(
            *("run", "--rm", "-T", "-v", f"{CALLERS}:/callers.py:ro", "--entrypoint", "python"),
            *("client", "/callers.py", "--prompts-from-seed"),
            *(part for role in ROLES for part in (f"--{role}", f"dns:///{role}:50051")),
            *arguments,
        )
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        callers = Callers(process)
        try:
            yield callers
        finally:
            if process.poll() is None:
                process.terminate()
            callers.join()


class Callers:
    """What callers in a container report, as it comes.

    Attributes:
        reports: One for each finished request.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.reports: list[dict[str, Any]] = []
        self._process = process
        self._errors = ""
        self._threads = [
            threading.Thread(target=self._read_reports, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_reports(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self.reports.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors = self._process.stderr.read()

    def join(self, *, seconds: float = 300) -> list[dict[str, Any]]:
        """Waits for the end of all requests."""
        self._process.wait(seconds)
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        return self.reports

    def wait_for(self, count: int, *, seconds: float = 120) -> None:
        """Waits until so many more requests have ended."""
        wanted = len(self.reports) + count
        wait_until(
            lambda: len(self.reports) >= wanted or self._process.poll() is not None,
            f"{count} more requests",
            seconds=seconds,
        )
        assert len(self.reports) >= wanted, f"the callers ended: {self.reports} {self._errors}"


def health(container: Container) -> str:
    """What the engine says of a container's health."""
    container.reload()
    return str(container.attrs["State"].get("Health", {}).get("Status", "none"))


def calls(container: Container, method: str) -> int:
    """How many calls of a method a stage's log tells of."""
    return sum(f"/{method}" in line for line in container.logs().decode().splitlines())
