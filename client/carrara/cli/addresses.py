"""The options that say which stages to talk to."""

from __future__ import annotations

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
