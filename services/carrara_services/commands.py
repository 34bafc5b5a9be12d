"""The commands that the services add to `carrara`: `serve`, `up`, `manifest` and `prune`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from carrara.manifest import Manifest, ManifestStage, read_manifest, write_manifest
from carrara_models.errors import CheckpointError
from carrara_models.families import STAGE_ROLES
from carrara_services import stage_processes
from carrara_services.serving import command_line
from carrara_services.serving.command_line import fail, serve_stage
from carrara_services.serving.settings import read_settings

MODULES = {
    "text-encoder": "carrara_services.text_encoder",
    "generator": "carrara_services.generator",
    "decoder": "carrara_services.decoder",
}
_STAGE_HELP = f"One of {', '.join(STAGE_ROLES)}; which ones a checkpoint has, its family says."


def serve(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help=_STAGE_HELP)],
    checkpoint: command_line.Checkpoint = None,
    bind: command_line.Bind = None,
    device: command_line.Device = None,
    numerics: command_line.Numerics = None,
    engine: command_line.Engine = None,
    dtype: command_line.Dtype = None,
    cache_dir: command_line.CacheDir = None,
    num_threads: command_line.NumThreads = None,
    max_queue_jobs: command_line.MaxQueueJobs = None,
    max_queue_seconds: command_line.MaxQueueSeconds = None,
    max_batch_rows: command_line.MaxBatchRows = None,
    max_wait_ms: command_line.MaxWaitMs = None,
    progress_interval_ms: command_line.ProgressIntervalMs = None,
    tile_size: command_line.TileSize = None,
    also_accepts: command_line.AlsoAccepts = None,
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
    role = _role(stage)
    serve_stage(role, import_module(f"{MODULES[role]}.__main__").open_stage, given=context.params)


def up(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="After --: a command to run while the stages are up.", metavar="-- COMMAND"
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder, embedded name or hub id; repeat for a cascade of several. "
            "[CARRARA_CHECKPOINT; drawn-latent]"
        ),
    ] = None,
    cascade: Annotated[
        Path | None,
        typer.Option(help="A manifest: starts its stages that name a checkpoint and no address."),
    ] = None,
    device: command_line.Device = None,
    numerics: command_line.Numerics = None,
    engine: command_line.Engine = None,
    dtype: command_line.Dtype = None,
    cache_dir: command_line.CacheDir = None,
    num_threads: command_line.NumThreads = None,
    log_level: command_line.LogLevel = "warning",
) -> None:
    """Start the stages of a checkpoint, or of several, as processes on this machine.

    With a command, sets CARRARA_TEXT_ENCODER, CARRARA_GENERATOR and CARRARA_DECODER for it, and
    ends the stages and itself with it. Without one, runs until Ctrl-C.
    """
    if cascade is not None:
        stages = read_manifest(cascade).stages
    else:
        names = checkpoint or [read_settings({}).checkpoint]
        stages = manifest_of(names, fingerprints=False).stages
    flags = {
        "--device": device,
        "--numerics": numerics,
        "--engine": engine,
        "--dtype": dtype,
        "--cache-dir": cache_dir,
        "--num-threads": num_threads,
        "--log-level": log_level,
    }
    # Whoever is told of the end here is on this machine: there is nobody to wait for.
    arguments = ["--drain-pause-seconds", "0"]
    arguments += [
        part for flag, value in flags.items() if value is not None for part in (flag, str(value))
    ]
    raise typer.Exit(
        stage_processes.run(stages, modules=MODULES, arguments=arguments, command=command or [])
    )


def manifest(
    checkpoints: Annotated[
        list[str],
        typer.Argument(help="Folders, embedded names or hub ids, in the order of the image's way."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; stdout if not given.")
    ] = None,
) -> None:
    """Write the manifest of a cascade: its stages, and the fingerprints that belong together.

    A text encoder that two checkpoints share stands in it once.
    """
    text = write_manifest(manifest_of(checkpoints, fingerprints=True))
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        fail(f"{output} cannot be written: {error.strerror}")
    typer.echo(output)


def prune(
    checkpoint: Annotated[str, typer.Argument(help="Folder, embedded name or hub id.")],
    stage: Annotated[str, typer.Option(help=_STAGE_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
) -> None:
    """Cut a checkpoint down to what one stage needs."""
    from carrara_models.checkpoints import open_checkpoint
    from carrara_models.pruning import prune as prune_checkpoint

    _role(stage)
    try:
        folder = prune_checkpoint(open_checkpoint(checkpoint, stage=stage), output=output)
    except CheckpointError as error:
        fail(str(error))
    typer.echo(folder)


def _role(stage: str) -> str:
    if stage not in STAGE_ROLES:
        fail(f"{stage!r} is no stage; allowed: {', '.join(STAGE_ROLES)}")
    return STAGE_ROLES[stage]


def manifest_of(checkpoints: Sequence[str], *, fingerprints: bool) -> Manifest:
    """All stages of some checkpoints; one that cannot be read ends the command.

    Args:
        checkpoints: Folders, embedded names or hub ids, in the order of the image's way.
        fingerprints: Whether they are computed, which reads all weights.
    """
    from carrara_models.checkpoints import open_checkpoint, stages_of_all

    try:
        return Manifest(
            tuple(
                ManifestStage(
                    role=STAGE_ROLES[stage],
                    stage=stage,
                    # A folder is found from wherever the manifest will lie.
                    checkpoint=str(Path(name).resolve()) if Path(name).is_dir() else name,
                    fingerprint=open_checkpoint(name, stage=stage).fingerprint
                    if fingerprints
                    else None,
                )
                for name, stage in stages_of_all(checkpoints)
            )
        )
    except CheckpointError as error:
        fail(str(error))
