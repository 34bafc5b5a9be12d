"""Runs stages as processes of this machine, perhaps with a command or other work beside them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

import typer

from carrara.manifest import ManifestStage

FIRST_PORT = 50051
_LAST_LOG_LINES = 20
_POLL_SECONDS = 0.1
# How long a process may take to end by itself once told.
_END_SECONDS = 30.0


class StageEndedError(Exception):
    """A stage ended by itself; the message has its last log lines."""


class _Stopped(SystemExit):
    """SIGTERM or Ctrl-C; as of any SystemExit, an event loop does not swallow it."""


class _StageProcess:
    """One stage's process; keeps its last log lines."""

    def __init__(
        self, stage: ManifestStage, *, module: str, arguments: Sequence[str], port: int
    ) -> None:
        self.name = stage.stage
        self.address = ""
        own = ["--stage", stage.stage, "--checkpoint", str(stage.checkpoint)]
        for space in stage.also_accepts:
            own += ["--also-accepts", space]
        self._log: deque[str] = deque(maxlen=_LAST_LOG_LINES)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "--bind", f"127.0.0.1:{port}", *own, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # One address for metrics, which the variable may name, is not for three stages.
            env={k: v for k, v in os.environ.items() if k != "CARRARA_METRICS_BIND"},
            # Ctrl-C in the terminal reaches `up` alone, which then ends its stages in order.
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read_ready, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self.address = json.loads(line)["address"]

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log.append(line)
            if self.address:  # before that, lines are shown only if the stage fails
                sys.stderr.write(line)

    def report(self) -> str:
        """Says how the process ended, with its last log lines."""
        for reader in self._readers:
            reader.join(timeout=1)
        log = "".join(self._log).rstrip()
        return f"the {self.name} ended with status {self.process.poll()}\n{log}"

    def end(self) -> None:
        """Tells the process to drain."""
        if self.process.poll() is None:
            self.process.terminate()

    def wait(self, until: float) -> None:
        """Waits for its end, and kills it if it takes too long."""
        try:
            self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


class RunningStages:
    """Stages that answer; made by `running`.

    Attributes:
        addresses: By role, in the order in which the stages were given.
    """

    def __init__(
        self, processes: Sequence[_StageProcess], *, addresses: Mapping[str, Sequence[str]]
    ) -> None:
        self._processes, self.addresses = processes, addresses

    @property
    def process_ids(self) -> list[tuple[str, int]]:
        """Name and process of each stage that was started here."""
        return [(process.name, process.process.pid) for process in self._processes]

    def refuse_ended(self) -> None:
        """Tells whether all still run.

        Raises:
            StageEndedError: One does not.
        """
        for process in self._processes:
            if process.process.poll() is not None:
                raise StageEndedError(process.report())


@contextlib.contextmanager
def running(
    stages: Sequence[ManifestStage], *, modules: Mapping[str, str], arguments: Sequence[str]
) -> Iterator[RunningStages]:
    """Starts stages, gives them once all are ready, and ends them with the block.

    SIGTERM and Ctrl-C end the block too, by a SystemExit whose status a shell would report.

    Args:
        stages: Those without an address are started; the others run already.
        modules: Role to the module that serves it.
        arguments: For every stage.

    Raises:
        StageEndedError: A stage ended before it was ready.
    """
    processes: list[_StageProcess] = []
    to_start = [stage for stage in stages if stage.address is None]
    with _signals_as_exception():
        try:
            for stage, port in zip(to_start, _ports(len(to_start)), strict=True):
                module = modules[stage.role]
                processes.append(
                    _StageProcess(stage, module=module, arguments=arguments, port=port)
                )
            up = RunningStages(processes, addresses={})
            while not all(process.address for process in processes):
                up.refuse_ended()
                time.sleep(_POLL_SECONDS)
            yield RunningStages(processes, addresses=_addresses(stages, processes))
        finally:
            until = time.monotonic() + _END_SECONDS
            for process in processes:
                process.end()
            for process in processes:
                process.wait(until)


def run(
    stages: Sequence[ManifestStage],
    *,
    modules: Mapping[str, str],
    arguments: Sequence[str],
    command: Sequence[str],
) -> int:
    """Starts the stages, and the command once all are ready; ends them all.

    Args:
        stages: As of `running`, and so the two that follow.
        command: Empty: wait for Ctrl-C or SIGTERM.

    Returns:
        The command's status; without one 0 after SIGTERM, 130 after Ctrl-C, 1 if a stage ended by
        itself.
    """
    try:
        with running(stages, modules=modules, arguments=arguments) as up:
            if command:
                return _run_beside(command, up)
            typer.echo(_how_to_use(up.addresses))
            while True:
                up.refuse_ended()
                time.sleep(_POLL_SECONDS)
    except StageEndedError as ended:
        typer.echo(f"error: {ended}", err=True)
        return 1
    except _Stopped as stopped:
        status = int(stopped.args[0])
        # Without a command, SIGTERM is how an operator ends it; Ctrl-C is 130 as everywhere.
        return 0 if status == 128 + signal.SIGTERM and not command else status


def _addresses(
    stages: Sequence[ManifestStage], processes: Sequence[_StageProcess]
) -> dict[str, list[str]]:
    """The stages' addresses by role, in their order."""
    started = iter(processes)
    addresses: dict[str, list[str]] = {}
    for stage in stages:
        address = next(started).address if stage.address is None else stage.address
        addresses.setdefault(stage.role, []).append(address)
    return addresses


def _run_beside(command: Sequence[str], up: RunningStages) -> int:
    # Where a role has several stages, the command line splits the variable at blanks.
    variables = {
        f"CARRARA_{role.upper().replace('-', '_')}": " ".join(each)
        for role, each in up.addresses.items()
    }
    try:
        beside = subprocess.Popen(command, env={**os.environ, **variables})
    except OSError as error:
        typer.echo(f"error: {command[0]}: {error.strerror}", err=True)
        return 127
    try:
        while (status := beside.poll()) is None:
            up.refuse_ended()
            time.sleep(_POLL_SECONDS)
    finally:
        if beside.poll() is None:
            beside.terminate()
            try:
                beside.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                beside.kill()
                beside.wait()
    return status if status >= 0 else 128 - status  # as a shell reports a signal


def _how_to_use(addresses: Mapping[str, Sequence[str]]) -> str:
    options = " ".join(f"--{role} {each}" for role in addresses for each in addresses[role])
    return (
        f'carrara generate "a large red circle on a white background" -o out.png {options}\n'
        "Ctrl-C ends the stages."
    )


def _ports(count: int) -> list[int]:
    """The usual ports where they are free, else 0, which takes any."""
    return [port if _is_free(port) else 0 for port in range(FIRST_PORT, FIRST_PORT + count)]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _signals_as_exception() -> Iterator[None]:
    """Turns SIGTERM and Ctrl-C into `_Stopped`, once: the ending itself is not cut short."""

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped(128 + number)

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    for each in before:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
