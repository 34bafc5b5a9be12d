"""The command line `carrara bench`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from carrara.aio import AsyncCascade
from carrara.cli.addresses import (
    CascadeFile,
    Decoders,
    Generators,
    TextEncoders,
    refuse_two_ways,
)
from carrara_models.errors import CheckpointError
from carrara_services.bench.cascade_target import cascade_target
from carrara_services.bench.class_options import read_classes
from carrara_services.bench.memory import MetricsPeaks, PeakMemory
from carrara_services.bench.report import document, lines_of, machine, stages_of, tables_of
from carrara_services.bench.runs import Run, measure
from carrara_services.bench.stages import (
    StartedStages,
    in_processes,
    in_this_process,
    read_stage_settings,
)
from carrara_services.bench.workloads import PRESETS, Workload, WorkloadName, workload_of
from carrara_services.plot_files import check_plot_file
from carrara_services.serving.settings import SettingsError, read_settings
from carrara_services.usage_errors import usage_errors

_WORKLOADS = "; ".join(f"{name}: {preset.told}" for name, preset in PRESETS.items())
_WIDE = 140  # columns, where the output is no terminal


def bench(
    context: typer.Context,
    workload: Annotated[
        WorkloadName,
        typer.Option(help=f"{_WORKLOADS}."),
    ] = "uniform",
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar='"NAME share=S SETTING=VALUE ..."',
            help="Requests of equal settings, in place of the workload's own. Repeat for a mix; "
            "shares are in proportion to one another.",
        ),
    ] = None,
    callers: Annotated[
        int | None,
        typer.Option(min=1, help="Of a closed loop: each sends when its last request has ended."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second, of poisson and overload.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="How many, in place of the workload's end.")
    ] = None,
    duration_seconds: Annotated[
        float | None,
        typer.Option(help="No request begins later. With --requests, whichever is first."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Of classes, prompts and arrivals; request i paints with seed+i."),
    ] = 0,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests before it, not counted.")] = 8,
    timeout_seconds: Annotated[float, typer.Option(help="For each request.")] = 600,
    in_time_seconds: Annotated[
        float | None,
        typer.Option(help="Up to which latency a picture is in time; else the timeout."),
    ] = None,
    clients: Annotated[
        int,
        typer.Option(
            min=1,
            help="Each with connections of its own, as of so many applications; requests go to "
            "them in turn.",
        ),
    ] = 1,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Let the SDK ask again, which hides refusals of replicas."),
    ] = False,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or folder whose stages are started as processes, in place of addresses; "
            "drawn-latent where neither is given. Repeat for a cascade of several."
        ),
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Start them in this process.")
    ] = False,
    num_threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of each stage that is started; else torch's own choice."),
    ] = None,
    serve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A flag of `carrara serve` for each of them, such as max_queue_jobs=4. Repeat "
            "for several.",
        ),
    ] = None,
    cascade: CascadeFile = None,
    text_encoder: TextEncoders = None,
    generator: Generators = None,
    decoder: Decoders = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Metrics of a stage that runs already, for its memory. Repeat for several.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write everything as one JSON object."),
    ] = None,
    with_records: Annotated[
        bool, typer.Option("--records", help="Put every request into it, with its times.")
    ] = False,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables.")
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Draw the latencies of each class."),
    ] = None,
) -> None:
    """Put a cascade under load and measure rates, latencies, refusals and memory.

    Classes, prompts and arrival times follow from the seed, so that two runs ask for the very same.
    """
    with usage_errors(CheckpointError, SettingsError), contextlib.ExitStack() as stack:
        refuse_two_ways(context, checkpoint=checkpoint, cascade=cascade)
        work = workload_of(
            workload,
            classes=read_classes(classes or []),
            callers=callers,
            rate=rate,
            request_count=requests,
            duration_seconds=duration_seconds,
            seed=seed,
        )
        addresses: Mapping[str, Sequence[str]] = {
            "text_encoders": text_encoder or [],
            "generators": generator or [],
            "decoders": decoder or [],
        }
        names = list(checkpoint or [])
        if not names and cascade is None and not any(addresses.values()):
            names = [read_settings({}).checkpoint]
        if not names and (in_process or num_threads or serve):
            option = "--in-process" if in_process else "--num-threads" if num_threads else "--serve"
            raise typer.BadParameter(f"{option} is of stages that are started here")
        if names and metrics:
            raise typer.BadParameter("--metrics is of stages that run already")
        if with_records and json_file is None:
            raise typer.BadParameter("--records needs --json FILE")
        _check_files(json_file, markdown_file, plot_file=plot_file)

        before = machine()
        began = datetime.now(UTC).isoformat(timespec="seconds")
        started = None
        if names:
            start = in_this_process if in_process else in_processes
            stage_settings = read_stage_settings(serve or [])
            started = stack.enter_context(
                start(names, num_threads=num_threads, settings=stage_settings)
            )
            addresses = started.addresses
        within = timeout_seconds if in_time_seconds is None else in_time_seconds
        runner = stack.enter_context(asyncio.Runner())
        run, stages, memory = runner.run(
            _measure(
                cascade,
                addresses,
                work,
                started=started,
                metrics=metrics or [],
                clients=clients,
                max_attempts=None if replay else 1,
                warm_up_count=warm_up,
                timeout_seconds=timeout_seconds,
                in_time_seconds=within,
            )
        )
        lines = lines_of(run, memory=memory, in_time_seconds=within)
        tables = tables_of(run.summary)
        console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
        for table in tables:
            console.print(table.to_rich())
        console.print("\n".join(lines), highlight=False, markup=False)
        if json_file is not None:
            whole = document(
                run,
                memory=memory,
                with_records=with_records,
                command=shlex.join(["carrara", *sys.argv[1:]]),
                began=began,
                machine=before,
                started=None if started is None else started.how,
                stages=stages,
                warm_up=warm_up,
                timeout_seconds=timeout_seconds,
                in_time_seconds=within,
                clients=clients,
                replay=replay,
            )
            json_file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        if markdown_file is not None:
            listed = "\n".join(f"- {line}" for line in lines)
            blocks = [*(table.to_markdown() for table in tables), listed]
            markdown_file.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
        if plot_file is not None:
            from carrara_services.bench.plots import plot_latencies

            class_names = [each.name for each in work.classes]
            plot_latencies(run.records, class_names=class_names, file=plot_file)
        if started is not None:  # last: what was measured until then has been told
            started.refuse_ended()
        if not run.summary.all.painted:
            raise typer.Exit(1)


async def _measure(
    manifest: Path | None,
    addresses: Mapping[str, Sequence[str]],
    work: Workload,
    *,
    started: StartedStages | None,
    metrics: Sequence[str],
    clients: int,
    max_attempts: int | None,
    **options: Any,
) -> tuple[Run, list[dict[str, Any]], list[PeakMemory]]:
    """Runs a workload; gives what Describe and the memory say too, which is read before the end."""

    async def connect() -> AsyncCascade:
        if manifest is not None:
            return await AsyncCascade.load(manifest, max_attempts=max_attempts)
        return await AsyncCascade.connect(**addresses, max_attempts=max_attempts)

    readings = MetricsPeaks(metrics)
    bars = Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    async with cascade_target(connect, clients=clients) as target, readings.polling():
        with bars:
            task = bars.add_task(work.name, total=work.request_count)
            run = await measure(target, work, on_record=lambda _: bars.advance(task), **options)
        if started is not None:
            memory = started.peaks()
        else:
            memory = await readings.read() or [PeakMemory("stages", None, "no --metrics given")]
        return run, stages_of(target.cascade.descriptions), memory


def _check_files(*files: Path | None, plot_file: Path | None) -> None:
    """Refuses, before anything runs, what could not be written afterwards."""
    if plot_file is not None:
        check_plot_file(plot_file, drawn_by="carrara_services.bench.plots")
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise typer.BadParameter(f"{file} is in no folder that exists")
