"""A stage's settings, from flags and `CARRARA_*` variables; nothing else reads the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from carrara_services.serving import limits

LogLevel = Literal["debug", "info", "warning", "error"]
Dtype = Literal["float32", "float16", "bfloat16"]
Numerics = Literal["exact", "fast"]
Engine = Literal["torch", "compile", "openvino"]


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the flag and what it takes."""


class Settings(BaseSettings):
    """What an operator says about one stage.

    Attributes:
        checkpoint: A folder, the name of an embedded checkpoint, or a hub id.
        stage: Name of the part in the checkpoint's family; None is the one called as the role is,
            else the only one of the role.
        also_accepts: Spaces of neighbours that are let through although they are not this
            checkpoint's own; fingerprints as `carrara info` shows them.
        bind: HOST:PORT or unix:PATH; port 0 takes a free one.
        device: cpu, cuda or cuda:N.
        numerics: exact: each picture has the bits that it would have alone. fast: as quick as the
            device can. None is exact on CPU and fast on CUDA.
        engine: What runs fast networks: torch's kernels, or for the usual shapes torch.compile's or
            OpenVINO's, which is an extra and for CPUs.
        dtype: Of the networks; None is float32 where numerics are exact and of text encoders on a
            CPU, else float16 on CUDA, and bfloat16 on a CPU that computes in it.
        cache_dir: Where engines keep what they have compiled, which the next start then finds; this
            user's alone. None is the user's cache.
        num_threads: That torch computes with; None is torch's own choice. Results depend on it.
        max_queue_jobs: How many jobs may wait; of text encoders so many requests, each of up to two
            texts.
        max_queue_seconds: How long the work that waits and runs may take, at the stage's own pace,
            for more to be let in.
        max_batch_rows: Rows of the network's batch; of decoders and text encoders, which have such
            in fast numerics only, pictures or texts. None: as many as the stage's role has.
        max_wait_ms: How long a picture or a text waits for others to share its batch; only of
            decoders and text encoders in fast numerics.
        progress_interval_ms: Of denoising steps that follow one another more quickly not all are
            told of, but the first, the last and those that are shown.
        tile_size: Pixels; in fast numerics, decoders decode pictures with a longer side in tiles of
            this size, for which less memory is enough.
        insecure: Allows addresses that other machines can reach.
        metrics_bind: HOST:PORT where Prometheus finds the metrics; None serves none.
        drain_pause_seconds: How long a stage that was told to end says so in its health before it
            refuses calls: as long as whoever watches its health may take to see it.
        drain_grace_seconds: How long what runs may go on after that.
        max_connection_age_seconds: After which a caller has to connect anew, and so finds replicas
            that have come since.
    """

    model_config = SettingsConfigDict(env_prefix="CARRARA_", frozen=True, extra="forbid")

    checkpoint: str = "drawn-latent"
    stage: str | None = None
    also_accepts: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    bind: str = "127.0.0.1:50051"
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    numerics: Numerics | None = None
    engine: Engine = "torch"
    dtype: Dtype | None = None
    cache_dir: Path | None = None
    num_threads: int | None = Field(default=None, ge=1)
    max_queue_jobs: int = Field(default=limits.MAX_QUEUE_JOBS, ge=1)
    max_queue_seconds: float = Field(default=limits.MAX_QUEUE_SECONDS, gt=0, le=86400)
    max_batch_rows: int | None = Field(default=None, ge=1)
    max_wait_ms: float = Field(default=limits.MAX_WAIT_MS, ge=0, le=1000)
    progress_interval_ms: float = Field(default=limits.PROGRESS_INTERVAL_MS, ge=0, le=60_000)
    tile_size: int = Field(default=limits.TILE_SIZE, ge=64, multiple_of=64)
    insecure: bool = False
    metrics_bind: str | None = None
    drain_pause_seconds: float = Field(default=limits.DRAIN_PAUSE_SECONDS, ge=0, le=3600)
    drain_grace_seconds: float = Field(default=limits.DRAIN_GRACE_SECONDS, ge=0, le=86400)
    max_connection_age_seconds: float = Field(
        default=limits.MAX_CONNECTION_AGE_SECONDS, ge=1, le=86400
    )
    log_level: LogLevel = "info"


def read_settings(given: dict[str, object]) -> Settings:
    """Builds the settings from flags, then variables, then defaults.

    Args:
        given: The flags; those that are None were not given.

    Raises:
        SettingsError: A value is out of range.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise SettingsError(
            f"--{name.replace('_', '-')} (or CARRARA_{name.upper()}): "
            f"{first['input']!r}: {first['msg']}"
        ) from error
