"""What is compared: Carrara's stages with some flags, diffusers in this process, peers' servers.

Each is started by itself and ended again, so that nothing else takes its processors.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from painting import Computing
from targets import DiffusersTarget, HttpTarget

from carrara.aio import AsyncCascade
from carrara_services.bench.cascade_target import cascade_target
from carrara_services.bench.load import Target
from carrara_services.bench.memory import peak_of_process
from carrara_services.bench.stages import in_processes

HERE = Path(__file__).parent
READY_SECONDS = 300.0
END_SECONDS = 30.0
POLL_SECONDS = 0.2


class NotRunError(Exception):
    """A contender cannot be run here; the message says why."""


@dataclass(frozen=True)
class Resources:
    """What every contender gets.

    Attributes:
        checkpoint: A folder in diffusers' layout.
        computing: How peers that run diffusers compute; threads and device are everyone's.
        workers: Of peers that have several.
        max_batch_size: Of peers that batch.
        cpus: Processors that servers may use; None for all.
        environments: Folder of the peers' virtual environments.
    """

    checkpoint: Path
    computing: Computing
    workers: int
    max_batch_size: int
    cpus: tuple[int, ...] | None
    environments: Path


@dataclass(frozen=True)
class Running:
    """A contender that answers.

    Attributes:
        connect: Opens it as a target.
        peak_bytes: Sum of the most memory that each of its processes has had; None is unknown.
    """

    connect: Callable[[], AbstractAsyncContextManager[Target]]
    peak_bytes: Callable[[], int | None]


@dataclass(frozen=True)
class Contender:
    """One line of the comparison.

    Attributes:
        start: Runs it as long as the block; raises `NotRunError`.
    """

    name: str
    start: Callable[[], AbstractContextManager[Running]]


@dataclass(frozen=True)
class PeerServer:
    """A server of this folder.

    Attributes:
        environment: A file of `requirements/`.
        ready_path: Answers with `ready_text` once requests are taken.
    """

    environment: str
    ready_path: str = "/health"
    ready_text: str = "ok"


SERVERS: Mapping[str, PeerServer] = {
    "fastapi": PeerServer("fastapi"),
    "litserve": PeerServer("litserve"),
    "ray": PeerServer("ray", ready_path="/-/routes", ready_text="/generate"),
    "openvino": PeerServer("openvino"),
}
PEERS = ("diffusers", *SERVERS)


def carrara(
    name: str,
    settings: Mapping[str, str],
    *,
    resources: Resources,
    generators: int = 1,
    clients: int = 1,
) -> Contender:
    """Carrara's stages, in processes.

    Args:
        settings: Flags of every stage.
        generators: Replicas of the generator.
        clients: That ask in turn, each with connections of its own.
    """

    @contextlib.contextmanager
    def start() -> Iterator[Running]:
        with contextlib.ExitStack() as stack:
            with _on(resources.cpus):
                up = stack.enter_context(
                    in_processes(
                        [str(resources.checkpoint)],
                        num_threads=resources.computing.num_threads,
                        settings={"device": resources.computing.device, **settings},
                        replicas={"generator": generators},
                    )
                )

            def connect() -> contextlib.AbstractAsyncContextManager[Target]:
                return cascade_target(
                    lambda: AsyncCascade.connect(**up.addresses, max_attempts=1), clients=clients
                )

            yield Running(connect, lambda: _sum(each.peak_bytes for each in up.peaks()))

    return Contender(name, start)


def peer(name: str, *, resources: Resources) -> Contender:
    """One of `PEERS`."""
    if name == "diffusers":
        return Contender(name, partial(_diffusers, resources))
    return Contender(name, partial(_server, name, SERVERS[name], resources))


@contextlib.contextmanager
def _diffusers(resources: Resources) -> Iterator[Running]:
    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Target]:
        target = DiffusersTarget(resources.checkpoint, resources.computing, cpus=resources.cpus)
        try:
            yield target
        finally:
            await target.aclose()

    # Its memory is this process's, in which others have been compared before.
    yield Running(connect, lambda: None)


@contextlib.contextmanager
def _server(name: str, server: PeerServer, resources: Resources) -> Iterator[Running]:
    environment = resources.environments / server.environment
    if not (environment / ".complete").exists():
        raise NotRunError(f"not installed: tests/bench/peers/make_env.sh {server.environment}")
    port, computing = _free_port(), resources.computing
    command = [
        *(str(environment / "bin" / "python"), str(HERE / f"{name}_server.py")),
        *("--checkpoint", str(resources.checkpoint), "--port", str(port)),
        *("--num-threads", str(computing.num_threads), "--workers", str(resources.workers)),
        *("--device", computing.device, "--dtype", computing.dtype),
        *("--max-batch-size", str(resources.max_batch_size)),
        *(["--compile"] if computing.compiled else []),
    ]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": str(computing.num_threads),
        # Ray's workers start elsewhere, and it is not to report this use.
        "PYTHONPATH": str(HERE),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryFile("w+") as log:
        with _on(resources.cpus):
            process = subprocess.Popen(
                command, cwd=HERE, env=variables, stdout=log, stderr=log, start_new_session=True
            )
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}{server.ready_path}", server)

            @contextlib.asynccontextmanager
            async def connect() -> AsyncIterator[Target]:
                target = HttpTarget(f"http://127.0.0.1:{port}/generate")
                try:
                    yield target
                finally:
                    await target.aclose()

            yield Running(connect, lambda: _sum(map(peak_of_process, _tree_of(process.pid))))
        except NotRunError as error:
            log.seek(0)
            last = log.read().strip().splitlines()[-1:]
            raise NotRunError(" ".join([str(error), *last])) from error
        finally:
            _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, server: PeerServer) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise NotRunError(f"ended with status {process.returncode} before it was ready:")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if server.ready_text in answer.read().decode():
                return
        time.sleep(POLL_SECONDS)
    raise NotRunError(f"was not ready within {READY_SECONDS:g} s:")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Tells it to end, and kills what is left of it and of its children."""
    tree = _tree_of(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _tree_of(pid: int) -> list[int]:
    """A process of this machine and all that it has started."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything.
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    tree = [pid]
    for each in tree:
        tree += children.get(each, [])
    return tree


@contextlib.contextmanager
def _on(cpus: Sequence[int] | None) -> Iterator[None]:
    """What is started in the block may use these processors alone."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _sum(peaks: Iterable[int | None]) -> int | None:
    known = [each for each in peaks if each is not None]
    return sum(known) if known else None
