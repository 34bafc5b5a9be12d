"""Carrara and what one would run in its place, side by side, in rounds whose order changes.

    tests/bench/peers/make_env.sh fastapi
    python tests/bench/peers/run.py --peer diffusers --peer fastapi
    python tests/bench/peers/run.py --workload "uniform callers=4" --workload mixed --workers 2 \\
        --carrara "fast generators=2 numerics=fast engine=openvino" --carrara exact \\
        --peer diffusers --peer fastapi --peer litserve --peer ray --json peers.json
    python tests/bench/peers/run.py --scheduler ddim --peer openvino

All have the same checkpoint, machine, threads, settings and requests. Before a contender is timed,
its pictures are held against those of diffusers alone. One that cannot be installed, started or
trusted is named with the reason. docs/performance.md has more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from contenders import PEERS, SERVERS, Contender, NotRunError, Resources, Running, carrara, peer
from options import read_arguments
from painting import computing_from
from pictures import Difference, OtherPictureError, Picture, compare, paint_all
from ratios import compare as compare_rounds
from rich.console import Console
from targets import DiffusersTarget

from carrara_models.checkpoints import resolve
from carrara_services.bench.cascade_target import CascadeTarget
from carrara_services.bench.report import machine, stages_of
from carrara_services.bench.runs import Run, measure
from carrara_services.bench.stages import read_stage_settings
from carrara_services.bench.workloads import (
    PRESETS,
    ClosedLoop,
    PaintRequest,
    RequestClass,
    Workload,
    sha256_of,
    warm_up_requests,
    workload_of,
)
from carrara_services.stage_processes import StageEndedError

CHECKS_PER_CLASS = 2
CHECK_TIMEOUT_SECONDS = 600.0
TOLD_RESOURCES = ("workers", "max_batch_size", "cpus")
TOLD_PACKAGES = (
    *("torch", "diffusers", "transformers", "fastapi", "uvicorn", "litserve", "ray"),
    *("openvino", "openvino-genai", "optimum-intel"),
)


@dataclass
class Results:
    """What came out so far.

    Attributes:
        runs: By workload and contender, one of each round.
        memory: Bytes at most, by contender.
        not_run: Why a contender is out.
        stages: What Describe tells, of contenders that are Carrara's.
    """

    runs: dict[str, dict[str, list[Run]]]
    differences: dict[str, Difference] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    stages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def main() -> None:
    """Reads the command line, runs all rounds, prints and writes the tables."""
    chosen = read_arguments(description=__doc__)
    resources = Resources(
        checkpoint=resolve(chosen.checkpoint),
        computing=computing_from(chosen),
        workers=chosen.workers,
        max_batch_size=chosen.max_batch_size,
        cpus=chosen.cpus,
        environments=chosen.environments,
    )
    workloads = [workload_from(option, chosen) for option in chosen.workload or [("uniform", {})]]
    contenders = [carrara_from(option, resources) for option in chosen.carrara or ["carrara"]]
    contenders += [peer(name, resources=resources) for name in chosen.peer or PEERS[:2]]
    baseline = contenders[0].name
    before, began = machine(), datetime.now(UTC).isoformat(timespec="seconds")

    every_class = {each.name: each for work in workloads for each in work.classes}
    checks = warm_up_requests(
        replace(workloads[0], classes=tuple(every_class.values())),
        count=CHECKS_PER_CLASS * len(every_class),
    )
    # Peers draw the noise in the precision that they compute in, which gives other numbers; Carrara
    # paints the float32 pipeline's picture in any.
    references = {
        dtype: asyncio.run(paint_references(checks, resources, dtype))
        for dtype in {"float32", chosen.dtype}
    }
    results = Results({work.name: {each.name: [] for each in contenders} for work in workloads})
    with contextlib.ExitStack() as kept:
        if chosen.keep_running:
            contenders = [started_once(each, kept) for each in contenders]
        for works, index in itertools.product(sittings(workloads), range(chosen.rounds)):
            turn = index % len(contenders)
            for contender in contenders[turn:] + contenders[:turn]:
                if contender.name not in results.not_run:
                    tell(f"round {index + 1} of {chosen.rounds}: {contender.name}")
                    take_turn(contender, works, checks, references, results, chosen)
                if baseline in results.not_run:
                    reason = results.not_run[baseline]
                    sys.exit(f"{baseline}, which others are held against, cannot run: {reason}")

    blocks = [str(table_of(work, results, baseline).to_markdown()) for work in workloads]
    blocks.append(told_of_pictures(results))
    print("\n\n".join(blocks))
    if chosen.markdown:
        chosen.markdown.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    if chosen.json:
        document = {
            "command": shlex.join(["python", "tests/bench/peers/run.py", *sys.argv[1:]]),
            "began": began,
            "machine": before,
            "checkpoint": chosen.checkpoint,
            "resources": {
                **asdict(resources.computing),
                **{name: getattr(resources, name) for name in TOLD_RESOURCES},
            },
            "versions": versions_in(resources.environments),
            **to_json(workloads, results),
        }
        chosen.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def take_turn(
    contender: Contender,
    works: Sequence[Workload],
    checks: Sequence[PaintRequest],
    references: Mapping[str, Sequence[Picture]],
    results: Results,
    chosen: argparse.Namespace,
) -> None:
    """Starts a contender, checks it the first time, and runs workloads once."""

    async def run_all(running: Running) -> None:
        async with running.connect() as target:
            if isinstance(target, CascadeTarget):
                results.stages[contender.name] = stages_of(target.cascade.descriptions)
            if contender.name not in results.differences:
                pictures = await paint_all(target, checks, timeout_seconds=CHECK_TIMEOUT_SECONDS)
                dtype = "float32" if isinstance(target, CascadeTarget) else chosen.dtype
                difference = compare(
                    pictures,
                    references[dtype],
                    target=target,
                    tolerance=chosen.tolerance,
                )
                results.differences[contender.name] = difference
            for work in works:
                run = await measure(
                    target,
                    work,
                    warm_up_count=chosen.warm_up,
                    timeout_seconds=chosen.timeout_seconds,
                    in_time_seconds=chosen.in_time_seconds or chosen.timeout_seconds,
                )
                results.runs[work.name][contender.name].append(run)
                tell(f"  {work.name}: {run.summary.images_per_second:.3f} images/s")
            peaks = (results.memory.get(contender.name), running.peak_bytes())
            results.memory[contender.name] = max(filter(None, peaks), default=None)

    try:
        with contender.start() as running:
            asyncio.run(run_all(running))
    except (NotRunError, OtherPictureError, StageEndedError) as error:
        results.not_run[contender.name] = " ".join(str(error).split())
        for runs in results.runs.values():
            del runs[contender.name]
        tell(f"  not run: {results.not_run[contender.name]}")


async def paint_references(
    requests: Sequence[PaintRequest], resources: Resources, dtype: str
) -> list[Picture]:
    """What diffusers alone paints, uncompiled and one at a time."""
    plain = replace(resources.computing, compiled=False, dtype=dtype)
    target = DiffusersTarget(resources.checkpoint, plain, cpus=None)
    try:
        return await paint_all(target, requests, timeout_seconds=CHECK_TIMEOUT_SECONDS)
    finally:
        await target.aclose()


def sittings(workloads: Sequence[Workload]) -> list[list[Workload]]:
    """Which workloads a contender runs in a row, without being started anew between them.

    An open loop has one of its own, as a server may still paint what its callers have given up.
    """
    found: list[list[Workload]] = []
    for work in workloads:
        if found and all(isinstance(each.arrivals, ClosedLoop) for each in (work, *found[-1])):
            found[-1].append(work)
        else:
            found.append([work])
    return found


def started_once(contender: Contender, kept: contextlib.ExitStack) -> Contender:
    """A contender that goes on until the stack is closed, however often it is started."""
    running: list[Running] = []

    @contextlib.contextmanager
    def start() -> Iterator[Running]:
        if not running:
            running.append(kept.enter_context(contender.start()))
        yield running[0]

    return Contender(contender.name, start)


def workload_from(option: tuple[str, Mapping[str, int]], chosen: argparse.Namespace) -> Workload:
    """A preset with what the command line says of it."""
    name, numbers = option
    preset = PRESETS[name]
    changed: dict[str, Any] = {}
    if chosen.scheduler is not None:
        changed["scheduler"] = chosen.scheduler
    if "steps" in numbers:
        changed["num_inference_steps"] = numbers["steps"]
    name_of = f"{numbers['steps']}-step" if "steps" in numbers else None
    classes = [
        RequestClass(name_of or each.name, each.share, {**each.settings, **changed})
        for each in preset.classes
    ]
    work = workload_of(
        name,
        classes=classes,
        rate=None if preset.rate_factor is None else chosen.rate,
        request_count=numbers.get("requests", chosen.requests),
        callers=numbers.get("callers"),
        seed=chosen.seed,
    )
    called = [f"{key}={number}" for key, number in numbers.items()]
    return replace(work, name=" ".join([name, *called]))


def carrara_from(option: str, resources: Resources) -> Contender:
    """Reads "NAME generators=N clients=N SETTING=VALUE ..."."""
    name, *given = option.split()
    counts = {"generators": 1, "clients": 1}
    settings = []
    for each in given:
        key, _, value = each.partition("=")
        if key in counts:
            counts[key] = int(value)
        else:
            settings.append(each)
    return carrara(name, read_stage_settings(settings), **counts, resources=resources)


def table_of(work: Workload, results: Results, baseline: str) -> Any:
    """The comparison under one workload."""
    return compare_rounds(
        work.name,
        {name: [run.summary for run in runs] for name, runs in results.runs[work.name].items()},
        baseline=baseline,
        memory=results.memory,
        not_run=results.not_run,
    )


def told_of_pictures(results: Results) -> str:
    """How far each contender's pictures are from those of diffusers alone."""
    return "\n".join(
        f"- {name}: pictures differ from diffusers' by {each.anywhere} of 255 at most, "
        f"{each.on_average:.3f} on average"
        for name, each in results.differences.items()
    )


def to_json(workloads: Sequence[Workload], results: Results) -> dict[str, Any]:
    """What came out, as an object for `json.dumps`."""
    return {
        "workloads": [
            {
                **work.to_json(),
                "runs": {
                    name: [
                        {
                            "requests_sha256": sha256_of(r.request for r in run.records),
                            "summary": run.summary.to_json(),
                        }
                        for run in runs
                    ]
                    for name, runs in results.runs[work.name].items()
                },
            }
            for work in workloads
        ],
        "differences": {name: asdict(each) for name, each in results.differences.items()},
        "peak_bytes": results.memory,
        "not_run": results.not_run,
        "stages": results.stages,
    }


def versions_in(environments: Path) -> dict[str, dict[str, str]]:
    """Versions of what matters in each peer's environment."""
    return {
        name: {
            found.name: found.version
            for found in distributions(
                path=[str(each) for each in (environments / name).glob("lib/python*/site-packages")]
            )
            if found.name in TOLD_PACKAGES
        }
        for name in SERVERS
    }


def tell(line: str) -> None:
    """Says how far the rounds are."""
    Console(stderr=True).print(line, highlight=False, markup=False)


if __name__ == "__main__":
    main()
