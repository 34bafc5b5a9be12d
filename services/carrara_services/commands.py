"""The commands that the services add to `carrara`: `serve`, `up` and `prune`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

from carrara_models.errors import CheckpointError
from carrara_services import stage_processes
from carrara_services.serving import command_line
from carrara_services.serving.command_line import fail, serve_stage

Role = Literal["text-encoder", "generator", "decoder"]

MODULES = {
    "text-encoder": "carrara_services.text_encoder",
    "generator": "carrara_services.generator",
    "decoder": "carrara_services.decoder",
}


def serve(
    context: typer.Context,
    role: Annotated[Role, typer.Argument(help="Which stage of the checkpoint to serve.")],
    checkpoint: command_line.Checkpoint = None,
    bind: command_line.Bind = None,
    device: command_line.Device = None,
    dtype: command_line.Dtype = None,
    num_threads: command_line.NumThreads = None,
    max_queue_jobs: command_line.MaxQueueJobs = None,
    max_batch_rows: command_line.MaxBatchRows = None,
    insecure: command_line.Insecure = None,
    metrics_bind: command_line.MetricsBind = None,
    drain_pause_seconds: command_line.DrainPauseSeconds = None,
    drain_grace_seconds: command_line.DrainGraceSeconds = None,
    max_connection_age_seconds: command_line.MaxConnectionAgeSeconds = None,
    log_level: command_line.LogLevel = None,
) -> None:
    """Serve one stage of a checkpoint.

    Prints one JSON line with role and address as soon as it answers. SIGTERM and Ctrl-C drain it.
    """
    given = {name: value for name, value in context.params.items() if name != "role"}
    serve_stage(role, import_module(f"{MODULES[role]}.__main__").open_stage, given=given)


def up(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="After --: a command to run while the stages are up.", metavar="-- COMMAND"
        ),
    ] = None,
    checkpoint: command_line.Checkpoint = None,
    device: command_line.Device = None,
    dtype: command_line.Dtype = None,
    num_threads: command_line.NumThreads = None,
    log_level: command_line.LogLevel = "warning",
) -> None:
    """Start the three stages of a checkpoint as processes on this machine.

    With a command, sets CARRARA_TEXT_ENCODER, CARRARA_GENERATOR and CARRARA_DECODER for it, and
    ends the stages and itself with it. Without one, runs until Ctrl-C.
    """
    flags = {
        "--checkpoint": checkpoint,
        "--device": device,
        "--dtype": dtype,
        "--num-threads": num_threads,
        "--log-level": log_level,
    }
    # Whoever is told of the end here is on this machine: there is nobody to wait for.
    arguments = ["--drain-pause-seconds", "0"]
    arguments += [
        part for flag, value in flags.items() if value is not None for part in (flag, str(value))
    ]
    raise typer.Exit(stage_processes.run(MODULES, arguments=arguments, command=command or []))


def prune(
    checkpoint: Annotated[str, typer.Argument(help="Folder, embedded name or hub id.")],
    stage: Annotated[Role, typer.Option(help="Which stage the new folder is for.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
) -> None:
    """Cut a checkpoint down to what one stage needs."""
    from carrara_models.checkpoints import open_checkpoint
    from carrara_models.pruning import prune as prune_checkpoint

    try:
        folder = prune_checkpoint(open_checkpoint(checkpoint, stage=stage), output=output)
    except CheckpointError as error:
        fail(str(error))
    typer.echo(folder)
