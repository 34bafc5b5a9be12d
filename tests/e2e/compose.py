"""Drives docker-compose.yml and its overrides, and looks at the containers through the engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import docker
from docker.models.containers import Container

ROOT = Path(__file__).parents[2]
PROJECT = "carrara-e2e"
ROLES = ("text-encoder", "generator", "decoder")
# Without --no-deps the second compose would remove the replicas that `up --scale` has started.
RUN = ("run", "--rm", "-T", "--no-deps")
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
    """One project of the compose file; as a context it takes down at its end what runs.

    Attributes:
        folder: What the client's container sees as /out.
        stages: The services of the cascade.
    """

    def __init__(
        self,
        folder: Path,
        *,
        overrides: Sequence[str] = (),
        stages: Sequence[str] = ROLES,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.stages = stages
        self.engine = docker.from_env()
        files = ("docker-compose.yml", *(f"deploy/docker-compose.{name}.yml" for name in overrides))
        self._command = [
            *(*compose_command(), "-p", PROJECT),
            *(part for file in files for part in ("-f", file)),
        ]
        self._environment = {
            **os.environ,
            **SETTINGS,
            "CARRARA_OUTPUT_DIR": str(folder),
            "CARRARA_UID": str(os.getuid()),
            "CARRARA_GID": str(os.getgid()),
            **(variables or {}),
        }

    def __enter__(self) -> Self:
        self.down()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self.engine.close()

    def run(self, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Runs compose to its end."""
        return subprocess.run(
            [*self._command, *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def must(self, *arguments: str, seconds: float = 300) -> str:
        """Runs compose, which has to succeed; returns what it printed."""
        done = self.run(*arguments, seconds=seconds)
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def up(self, scale: Mapping[str, int] | None = None) -> None:
        """Starts the stages in the given numbers, one of each not named, and waits for health."""
        wanted = dict.fromkeys(self.stages, 1) | dict(scale or {})
        scales = [f"{service}={number}" for service, number in wanted.items()]
        options = [part for each in scales for part in ("--scale", each)]
        self.must("up", "--detach", *options, *wanted)
        try:
            wait_until(
                lambda: {service: self.healthy(service) for service in wanted} == wanted,
                f"healthy containers: {wanted}",
                seconds=HEALTHY_SECONDS,
            )
        except AssertionError as error:
            error.add_note(self.run("logs", "--tail", "5").stdout)
            raise

    def down(self) -> None:
        """Removes all containers and volumes."""
        self.must("--profile", "watch", "down", "--volumes", "--remove-orphans")

    def containers(self, service: str, *, of_run: bool = False) -> list[Container]:
        """Of one service, running or not: those of `up`, or those of `run`."""
        labels = [f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}"]
        found = self.engine.containers.list(
            all=True, filters={"label": labels}, ignore_removed=True
        )
        return [each for each in found if each.labels["com.docker.compose.oneoff"] == str(of_run)]

    def healthy(self, service: str) -> int:
        """How many containers of one service are healthy."""
        return sum(health(each) == "healthy" for each in self.containers(service))

    def client(self, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Runs the command line in the client's container."""
        return self.run(*RUN, "client", *arguments, seconds=seconds)

    @contextmanager
    def callers(self, *arguments: str) -> Iterator[Callers]:
        """Callers in the client's container, for as long as the block lasts."""
        command = [
            *(*self._command, *RUN, "-v", f"{CALLERS}:/callers.py:ro", "--entrypoint", "python"),
            *("client", "/callers.py", "--prompts-from-seed", *arguments),
        ]
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
            # Not compose's own process: its second version does not hand the signal on.
            for container in self.containers("client", of_run=True):
                with suppress(docker.errors.APIError):  # it has just ended
                    container.kill("SIGTERM")
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
