"""Commands that other parts of Carrara add, each imported only when it is called."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from carrara.exceptions import MissingExtraError

GROUP = "carrara.commands"

# What `carrara --help` says of them, so that it need not import them.
_SUMMARIES = {
    "serve": "Serve one stage of a checkpoint.",
    "up": "Start all stages of a checkpoint as processes on this machine.",
    "manifest": "Write the manifest of a cascade.",
    "prune": "Cut a checkpoint down to what one stage needs.",
    "train": "Train a text encoder, an autoencoder or a generator.",
    "evaluate": "Measure what a checkpoint paints.",
    "bench": "Put a cascade under load and measure it.",
}
_EXTRAS = {"train": "train"}  # "services" for all others


class PlugInGroup(TyperGroup):
    """A group of commands that also has those of the entry-point group `carrara.commands`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names the group's own commands, then the added ones."""
        own = super().list_commands(ctx)
        return own + [name for name in sorted(_found()) if name not in own]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Gives a command; an added one stands in for itself until it is called."""
        own = super().get_command(ctx, cmd_name)
        entry_point = _found().get(cmd_name)
        return own if own is not None or entry_point is None else _NotYetImported(entry_point)


class _NotYetImported(TyperCommand):
    def __init__(self, entry_point: EntryPoint) -> None:
        super().__init__(name=entry_point.name, help=_SUMMARIES.get(entry_point.name, ""))
        self._entry_point = entry_point

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Imports the command, whose own context takes the place of this one's."""
        return _imported(self._entry_point).make_context(*args, **kwargs)


def _found() -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=GROUP)}


def _imported(entry_point: EntryPoint) -> Any:
    try:
        command = entry_point.load()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(entry_point.name, "services")
        raise MissingExtraError(
            f"`carrara {entry_point.name}` needs {error.name}: pip install 'carrara[{extra}]'"
        ) from error
    if isinstance(command, typer.Typer):
        return typer.main.get_command(command)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(entry_point.name)(command)
    return typer.main.get_command(alone)
