"""Finds what can run all stages of a checkpoint in this process, and imports it only then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from carrara.exceptions import MissingExtraError

GROUP = "carrara.runtimes"
SERVICES_COMMAND = "pip install 'carrara[services]'"


@dataclass(frozen=True)
class StageToRun:
    """One stage of one checkpoint.

    Attributes:
        stage: Its name in the family, such as "prior".
        checkpoint: A folder, the name of an embedded checkpoint, or a hub id.
        also_accepts: As of `carrara.manifest.ManifestStage`.
    """

    stage: str
    checkpoint: str
    also_accepts: tuple[str, ...] = ()


class RunningStages(Protocol):
    """Stages that run in this process, at addresses as `connect` takes them."""

    @property
    def text_encoders(self) -> Sequence[str]:
        """One address for each text encoder."""

    @property
    def generators(self) -> Sequence[str]:
        """One address for each generator, in chain order."""

    @property
    def decoders(self) -> Sequence[str]:
        """One address for each decoder, in chain order."""

    def close(self) -> None:
        """Ends them."""


def start_embedded(
    *, checkpoints: Sequence[str] = (), stages: Sequence[StageToRun] = ()
) -> RunningStages:
    """Starts stages; takes as long as loading them does.

    Args:
        checkpoints: All stages of these: embedded names or folders. Without any, and without
            stages, the one that ships with Carrara.
        stages: These beside them.

    Raises:
        MissingExtraError: Nothing is installed that can run stages.
    """
    for entry_point in entry_points(group=GROUP, name="embedded"):
        try:
            start = entry_point.load()
        except ImportError as error:
            raise MissingExtraError(
                f"running a checkpoint in this process needs {error.name}: {SERVICES_COMMAND}"
            ) from error
        running: RunningStages = start(checkpoints=checkpoints, stages=stages)
        return running
    raise MissingExtraError(
        f"running a checkpoint in this process needs the services: {SERVICES_COMMAND}"
    )
