"""Two replicas of each stage under twelve callers: one is killed or drained, and nobody notices.

Pictures are compared with those that the stages painted inside the test's own process.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from callers import Painted, run_callers
from carrara import AsyncCascade
from carrara.connections import Stage
from integration.processes import StageProcess, starting
from name_server import Names, name_server
from tiny_checkpoints import build_sd1

CALLERS = 12
STEPS = 4
# Of their own, so that the text encoders meet no prompt that they have in their cache.
SEEDS = {"text-encoder": range(1000, 1100), "generator": range(100), "decoder": range(100)}
BEFORE, AFTER = 24, 48  # pictures painted before and after a fault
HOSTS = ("127.0.0.1", "127.0.0.2")  # both are this machine, so that one name can have both
METHODS = {
    "text-encoder": "/carrara.v1.TextEncoderService/Encode",
    "generator": "/carrara.v1.GeneratorService/Generate",
    "decoder": "/carrara.v1.DecoderService/Decode",
}

# The first test waits for six processes that start at once; on a busy machine that takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Replicas:
    """Two processes of each role, on one port of two addresses; those that ended are replaced."""

    def __init__(self, checkpoint: Path, stack: ExitStack) -> None:
        self._checkpoint, self._stack = checkpoint, stack
        self._ports = {role: _free_port() for role in METHODS}
        self.by_role: dict[str, list[StageProcess]] = {role: [] for role in METHODS}

    def complete(self) -> None:
        """Starts what is missing, all at once."""
        started = []
        for role, replicas in self.by_role.items():
            alive = {r.address: r for r in replicas if r.process.poll() is None}
            self.by_role[role] = []
            for host in HOSTS:
                address = f"{host}:{self._ports[role]}"
                replica = alive.get(address)
                if replica is None:
                    flags = ("--bind", address, "--drain-pause-seconds", "1")
                    replica = self._stack.enter_context(
                        starting(role, checkpoint=self._checkpoint, flags=flags)
                    )
                    started.append(replica)
                self.by_role[role].append(replica)
        for replica in started:
            replica.wait_until_ready()

    def addresses(self, by: str, names: Names) -> dict[str, list[str]]:
        """As `connect` takes them: each stage's replicas with commas, or as one name."""
        return {
            f"{role.replace('-', '_')}s": [
                names.target(self._ports[role])
                if by == "name"
                else ",".join(replica.address for replica in replicas)
            ]
            for role, replicas in self.by_role.items()
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOSTS[0], 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


@pytest.fixture(scope="module")
def references(sd1: Path) -> Mapping[int, str | None]:
    """The hash of each seed's picture."""

    async def paint_all() -> list[Painted]:
        async with await AsyncCascade.embedded(sd1) as cascade:
            seeds = sorted({*itertools.chain.from_iterable(SEEDS.values())})
            return await run_callers(cascade, seeds, callers=CALLERS, steps=STEPS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARRARA_NUM_THREADS", "1")
        painted = asyncio.run(paint_all())
    assert not [each.error for each in painted if each.error]
    hashes = {each.seed: each.sha256 for each in painted}
    assert len(set(hashes.values())) == len(hashes), "each seed has a picture of its own"
    return hashes


@pytest.fixture(scope="module")
def all_replicas(sd1: Path) -> Iterator[Replicas]:
    with ExitStack() as stack:
        yield Replicas(sd1, stack)


@pytest.fixture
def replicas(all_replicas: Replicas) -> Replicas:
    all_replicas.complete()
    return all_replicas


@pytest.fixture
def names() -> Iterator[Names]:
    with name_server(*HOSTS) as names:
        yield names


async def until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "it did not happen"
        await asyncio.sleep(0.02)


async def paint_around(
    fault: Callable[[list[Painted]], Awaitable[None]],
    *,
    addresses: Mapping[str, list[str]],
    seeds: range,
) -> list[Painted]:
    """Paints before, during and after a fault; gives all requests."""
    painted: list[Painted] = []
    stop = asyncio.Event()
    async with await AsyncCascade.connect(**addresses) as cascade:
        load = asyncio.create_task(
            run_callers(
                cascade,
                itertools.cycle(seeds),
                callers=CALLERS,
                steps=STEPS,
                stop=stop,
                on_painted=painted.append,
            )
        )
        try:
            await until(lambda: len(painted) >= BEFORE)
            await fault(painted)
            wanted = len(painted) + AFTER
            await until(lambda: len(painted) >= wanted)
        finally:
            stop.set()
            everything = await load
    return everything


async def until_it_computes(generator: StageProcess) -> None:
    stage = Stage(generator.address, role="generator")
    while not stage.description.load.jobs_running:
        await stage.describe()
    await stage.close()


def assert_as_painted_alone(painted: list[Painted], references: Mapping[int, str | None]) -> None:
    assert [each.error for each in painted if each.error] == []
    assert [each.seed for each in painted if each.sha256 != references[each.seed]] == []


def calls(replica: StageProcess) -> list[dict[str, object]]:
    """What the replica's log says of the calls of its own service."""
    entries = [json.loads(line) for line in replica.log.splitlines() if line.startswith("{")]
    return [entry for entry in entries if entry.get("method") == METHODS[replica.role]]


@pytest.mark.parametrize(
    ("role", "by"),
    [
        ("generator", "addresses"),
        ("generator", "name"),
        ("decoder", "addresses"),
        ("text-encoder", "name"),
    ],
)
async def test_killing_a_replica_costs_no_request(
    role: str, by: str, replicas: Replicas, names: Names, references: Mapping[int, str | None]
) -> None:
    doomed, other = replicas.by_role[role]

    async def kill(painted: list[Painted]) -> None:
        if role == "generator":
            await until_it_computes(doomed)
        else:
            # These are done in a moment, so that hardly ever a call is under way: frozen first, it
            # holds on to the calls that come, as many as the other one has, or behind a name all.
            doomed.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(2)
        doomed.process.kill()
        await asyncio.to_thread(doomed.process.wait)

    painted = await paint_around(kill, addresses=replicas.addresses(by, names), seeds=SEEDS[role])
    assert doomed.process.returncode == -9, "it is gone"
    assert calls(doomed), "it had its share before"
    lost = [each for each in painted if each.attempts.get(role, 0) > 1]
    assert lost, "calls were under way"
    assert calls(other)
    assert_as_painted_alone(painted, references)
    assert all(each.replays == each.attempts[role] - 1 for each in painted), "no other stage's"


@pytest.mark.parametrize("by", ["addresses", "name"])
async def test_draining_a_generator_costs_no_request(
    by: str, replicas: Replicas, names: Names, references: Mapping[int, str | None]
) -> None:
    doomed, other = replicas.by_role["generator"]
    others_share = 0

    async def drain(painted: list[Painted]) -> None:
        nonlocal others_share
        await until_it_computes(doomed)
        doomed.process.terminate()
        await asyncio.to_thread(doomed.process.wait, 60)
        others_share = len(calls(other))

    painted = await paint_around(
        drain, addresses=replicas.addresses(by, names), seeds=SEEDS["generator"]
    )
    assert '"draining"' in doomed.log, "it was told to end while it computed"
    assert doomed.process.returncode == 0
    assert calls(doomed), "it had its share before"
    assert len(calls(other)) - others_share >= AFTER, "the other one did the rest"
    assert_as_painted_alone(painted, references)


async def test_replicas_are_used_in_turn(
    replicas: Replicas, names: Names, references: Mapping[int, str | None]
) -> None:
    everyone = [*itertools.chain.from_iterable(replicas.by_role.values())]
    before = {replica.address: len(calls(replica)) for replica in everyone}
    async with await AsyncCascade.connect(**replicas.addresses("name", names)) as cascade:
        await run_callers(cascade, range(BEFORE), callers=CALLERS, steps=STEPS)  # all are reached
        painted = await run_callers(cascade, SEEDS["generator"], callers=CALLERS, steps=STEPS)
    assert_as_painted_alone(painted, references)
    for role, pair in replicas.by_role.items():
        shares = [len(calls(replica)) - before[replica.address] for replica in pair]
        assert sum(shares) == BEFORE + len(painted), role
        assert min(shares) >= len(painted) / 3, (role, shares)
