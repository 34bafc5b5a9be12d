"""The options that say which stages to talk to, and what they exclude."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

_HELP = "host:port, unix:/path or dns:///name:port; commas between replicas. Repeat for several."

TextEncoders = Annotated[
    list[str] | None,
    typer.Option("--text-encoder", envvar="CARRARA_TEXT_ENCODER", metavar="ADDR", help=_HELP),
]
Generators = Annotated[
    list[str] | None,
    typer.Option("--generator", envvar="CARRARA_GENERATOR", metavar="ADDR", help=_HELP),
]
Decoders = Annotated[
    list[str] | None,
    typer.Option("--decoder", envvar="CARRARA_DECODER", metavar="ADDR", help=_HELP),
]

CascadeFile = Annotated[
    Path | None,
    typer.Option("--cascade", help="A manifest, in place of addresses.", metavar="FILE"),
]


def refuse_two_ways(
    context: typer.Context, *, checkpoint: Sequence[str] | None, cascade: Path | None
) -> None:
    """Refuses two of checkpoint, manifest and addresses; what variables say may go unused.

    Args:
        context: Of a command with the options of this file.
        checkpoint: What `--checkpoint` says.
        cascade: What `--cascade` says.

    Raises:
        typer.BadParameter: Names the two.
    """
    chosen = {
        "--checkpoint": bool(checkpoint),
        "--cascade": cascade is not None,
        **{
            f"--{name.replace('_', '-')}": typed(context, name)
            for name in ("text_encoder", "generator", "decoder")
        },
    }
    ways = [option for option, given in chosen.items() if given]
    if len(ways) > 1 and ways[0] in ("--checkpoint", "--cascade"):
        raise typer.BadParameter(f"{ways[0]} and {ways[1]} exclude one another")


def typed(context: typer.Context, name: str) -> bool:
    """Whether an option was typed, and is neither a default nor a variable's."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
