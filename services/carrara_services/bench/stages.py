"""Starts the stages that are put under load, in processes of their own or in this one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from carrara_models.errors import BadFieldError
from carrara_services import embedded
from carrara_services.bench.memory import PeakMemory, peak_of_process, peaks_of_processes
from carrara_services.commands import MODULES, manifest_of
from carrara_services.serving.settings import Settings
from carrara_services.stage_processes import running

# What a bench says of each stage by itself, or what one value for all stages cannot be.
NOT_FOR_ALL = ("checkpoint", "stage", "also_accepts", "bind", "num_threads", "metrics_bind")


@dataclass(frozen=True)
class StartedStages:
    """Stages that answer.

    Attributes:
        how: "processes" or "in this process".
        addresses: By the names of `AsyncCascade.connect`.
        peaks: Reads what memory they have had at most; while they live.
        refuse_ended: Raises `StageEndedError` if one does not run any more.
    """

    how: str
    addresses: Mapping[str, Sequence[str]]
    peaks: Callable[[], list[PeakMemory]]
    refuse_ended: Callable[[], None] = lambda: None


def read_stage_settings(options: Iterable[str]) -> dict[str, str]:
    """Reads NAME=VALUE options, by the names of `serving.settings.Settings`.

    Raises:
        BadFieldError: One is no setting, or none that all stages can share.
    """
    allowed = [name for name in Settings.model_fields if name not in NOT_FOR_ALL]
    settings = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or name not in allowed:
            raise BadFieldError("serve", option, f"NAME=VALUE of {', '.join(allowed)}")
        settings[name] = text
    return settings


@contextlib.contextmanager
def in_processes(
    checkpoints: Sequence[str],
    *,
    num_threads: int | None,
    settings: Mapping[str, str],
    replicas: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[StartedStages]:
    """Starts the stages of checkpoints as `carrara up` does.

    Args:
        num_threads: Of each stage; None is torch's choice.
        settings: Of each stage.
        replicas: How many of each role's stages are started; one where it says nothing.

    Raises:
        StageEndedError: A stage ended before it was ready.
    """
    flags = {"drain_pause_seconds": "0", "log_level": "warning", **settings}
    if num_threads is not None:
        flags["num_threads"] = str(num_threads)
    stages = [
        stage
        for stage in manifest_of(checkpoints, fingerprints=False).stages
        for _ in range(replicas.get(stage.role, 1))
    ]
    arguments = [
        part for name, text in flags.items() for part in (f"--{name.replace('_', '-')}", text)
    ]
    with running(stages, modules=MODULES, arguments=arguments) as up:
        yield StartedStages(
            "processes",
            addresses={
                f"{role.replace('-', '_')}s": _joined(
                    up.addresses.get(role, []), count=replicas.get(role, 1)
                )
                for role in ("text-encoder", "generator", "decoder")
            },
            peaks=lambda: peaks_of_processes(up.process_ids),
            refuse_ended=up.refuse_ended,
        )


def _joined(addresses: Sequence[str], *, count: int) -> list[str]:
    """One string for each stage, of the addresses of its `count` replicas."""
    return [",".join(addresses[first : first + count]) for first in range(0, len(addresses), count)]


@contextlib.contextmanager
def in_this_process(
    checkpoints: Sequence[str], *, num_threads: int | None, settings: Mapping[str, str]
) -> Iterator[StartedStages]:
    """Starts them beside the caller, who then takes processor time from them.

    Args:
        num_threads: Of the whole process; None leaves it as it is.
        settings: Of each stage.
    """
    stages = embedded.start(checkpoints=checkpoints, num_threads=num_threads, settings=settings)
    try:
        yield StartedStages(
            "in this process",
            addresses={
                "text_encoders": stages.text_encoders,
                "generators": stages.generators,
                "decoders": stages.decoders,
            },
            peaks=lambda: [
                PeakMemory(
                    "this process",
                    peak_of_process(),
                    "VmHWM of this process, all stages and the caller together",
                )
            ],
        )
    finally:
        stages.close()
