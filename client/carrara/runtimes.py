"""Finds what can run all stages of a checkpoint in this process, and imports it only then."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Protocol

from carrara.exceptions import MissingExtraError

GROUP = "carrara.runtimes"
SERVICES_COMMAND = "pip install 'carrara[services]'"


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


def start_embedded(checkpoint: str | None) -> RunningStages:
    """Starts all stages of a checkpoint; takes as long as loading it does.

    Args:
        checkpoint: Embedded name or folder; None for the one that ships with Carrara.

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
        stages: RunningStages = start(checkpoint)
        return stages
    raise MissingExtraError(
        f"running a checkpoint in this process needs the services: {SERVICES_COMMAND}"
    )
