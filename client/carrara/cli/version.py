"""`carrara version`."""

from importlib import metadata

import typer


def version() -> None:
    """Print the version of this installation."""
    typer.echo(f"carrara {metadata.version('carrara')}")
