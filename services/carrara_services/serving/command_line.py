"""The flags of a stage's process, for `carrara serve` and `python -m` alike."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from carrara_models.errors import CheckpointError
from carrara_services.serving import app, logs
from carrara_services.serving.settings import Settings, SettingsError, read_settings

logger = logging.getLogger(__name__)

# A flag's default is None, so that its CARRARA_* variable, then the default of `Settings`, applies.
Checkpoint = Annotated[
    str | None,
    typer.Option(help="Folder, embedded name or hub id. [CARRARA_CHECKPOINT; drawn-latent]"),
]
StageName = Annotated[
    str | None,
    typer.Option(
        help="Name of the stage in its family, such as prior. [CARRARA_STAGE; the role's, or the "
        "only one of the role]"
    ),
]
AlsoAccepts = Annotated[
    list[str] | None,
    typer.Option(
        help="Fingerprint of a neighbour to let through although its checkpoint is another one; "
        "repeat for several. [CARRARA_ALSO_ACCEPTS, a JSON list]"
    ),
]
Bind = Annotated[
    str | None,
    typer.Option(help="HOST:PORT or unix:PATH; port 0 is any. [CARRARA_BIND; 127.0.0.1:50051]"),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. [CARRARA_DEVICE; cpu]")]
Numerics = Annotated[
    str | None,
    typer.Option(help="exact or fast. [CARRARA_NUMERICS; exact on CPU, fast on CUDA]"),
]
Engine = Annotated[
    str | None,
    typer.Option(help="Of fast numerics: torch, compile or openvino. [CARRARA_ENGINE; torch]"),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, float16 or bfloat16. [CARRARA_DTYPE; float32 where exact, else what the "
        "device is fast in]"
    ),
]
CacheDir = Annotated[
    str | None,
    typer.Option(
        help="Where engines keep what they have compiled for the next start; nobody else may write "
        "there. [CARRARA_CACHE_DIR; ~/.cache/carrara]"
    ),
]
NumThreads = Annotated[
    int | None, typer.Option(help="That torch computes with. [CARRARA_NUM_THREADS; torch's choice]")
]
MaxQueueJobs = Annotated[
    int | None, typer.Option(help="How many jobs may wait. [CARRARA_MAX_QUEUE_JOBS; 64]")
]
MaxQueueSeconds = Annotated[
    float | None,
    typer.Option(
        help="How long what waits and runs may take for more to be let in. "
        "[CARRARA_MAX_QUEUE_SECONDS; 600]"
    ),
]
MaxBatchRows = Annotated[
    int | None,
    typer.Option(
        help="Rows of a batch; with fast numerics also a decoder's pictures, a text encoder's "
        "texts. [CARRARA_MAX_BATCH_ROWS; 32, on a GPU as many of them as fit, 8 pictures, "
        "16 texts]"
    ),
]
MaxWaitMs = Annotated[
    float | None,
    typer.Option(
        help="Decoders and text encoders with fast numerics: how long work waits for other to "
        "share its batch. [CARRARA_MAX_WAIT_MS; 0]"
    ),
]
ProgressIntervalMs = Annotated[
    float | None,
    typer.Option(
        help="Of denoising steps that are closer together not all are told of; 0 tells of each. "
        "[CARRARA_PROGRESS_INTERVAL_MS; 100]"
    ),
]
TileSize = Annotated[
    int | None,
    typer.Option(
        help="Decoders with fast numerics: pixels of the tiles in which larger pictures are "
        "decoded. [CARRARA_TILE_SIZE; 1024]"
    ),
]
Insecure = Annotated[
    bool | None,
    typer.Option(
        "--insecure", help="Allow an address that other machines reach. [CARRARA_INSECURE]"
    ),
]
MetricsBind = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of the Prometheus metrics. [CARRARA_METRICS_BIND; none]"),
]
DrainPauseSeconds = Annotated[
    float | None,
    typer.Option(
        help="Told to end: how long to be NOT_SERVING before refusing calls. "
        "[CARRARA_DRAIN_PAUSE_SECONDS; 5]"
    ),
]
DrainGraceSeconds = Annotated[
    float | None,
    typer.Option(help="And how long what runs may go on. [CARRARA_DRAIN_GRACE_SECONDS; 600]"),
]
MaxConnectionAgeSeconds = Annotated[
    float | None,
    typer.Option(
        help="When callers have to connect anew. [CARRARA_MAX_CONNECTION_AGE_SECONDS; 60]"
    ),
]
LogLevel = Annotated[
    str | None, typer.Option(help="debug, info, warning or error. [CARRARA_LOG_LEVEL; info]")
]


def run_stage(role: str, open_stage: Callable[[Settings], app.Stage]) -> None:
    """Reads the flags from the command line and serves: the body of each stage's `__main__`."""

    def serve(
        context: typer.Context,
        checkpoint: Checkpoint = None,
        stage: StageName = None,
        bind: Bind = None,
        device: Device = None,
        numerics: Numerics = None,
        engine: Engine = None,
        dtype: Dtype = None,
        cache_dir: CacheDir = None,
        num_threads: NumThreads = None,
        max_queue_jobs: MaxQueueJobs = None,
        max_queue_seconds: MaxQueueSeconds = None,
        max_batch_rows: MaxBatchRows = None,
        max_wait_ms: MaxWaitMs = None,
        progress_interval_ms: ProgressIntervalMs = None,
        tile_size: TileSize = None,
        also_accepts: AlsoAccepts = None,
        insecure: Insecure = None,
        metrics_bind: MetricsBind = None,
        drain_pause_seconds: DrainPauseSeconds = None,
        drain_grace_seconds: DrainGraceSeconds = None,
        max_connection_age_seconds: MaxConnectionAgeSeconds = None,
        log_level: LogLevel = None,
    ) -> None:
        serve_stage(role, open_stage, given=context.params)

    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command(help=f"Serves a {role} of a checkpoint.")(serve)
    command()


def serve_stage(
    role: str, open_stage: Callable[[Settings], app.Stage], *, given: dict[str, object]
) -> None:
    """Serves a stage until it is told to end; an operator's mistake is one line and exit 2."""
    try:
        settings = read_settings(given)
        logs.configure(settings.log_level)
        asyncio.run(app.serve(role, settings, open_stage=open_stage))
    except (SettingsError, CheckpointError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        logger.exception("the %s could not be served", role)
        fail(f"{type(error).__name__}: {error}", code=1)


def fail(message: str, *, code: int = 2) -> NoReturn:
    """Ends the command with one clear line on stderr."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)
