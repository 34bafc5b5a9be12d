"""Classes of requests as the command line spells them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer

from carrara.arguments import OF_THE_REQUEST, parse
from carrara_services.bench.workloads import RequestClass


def read_classes(options: Iterable[str]) -> list[RequestClass]:
    """Reads options such as "quick share=0.5 num_inference_steps=4 guidance_scale=1".

    Args:
        options: A name each, then NAME=VALUE between blanks: `share`, and any setting of `generate`
            but those that every request has of its own.

    Raises:
        typer.BadParameter: What cannot be read.
    """
    classes = []
    for option in options:
        name, *parts = option.split() or [""]
        share, settings = 1.0, dict[str, Any]()
        try:
            if not name or "=" in name:
                raise ValueError("it does not begin with a name")
            for part in parts:
                key, equals, text = part.partition("=")
                if not equals:
                    raise ValueError(f"{part!r} is not NAME=VALUE")
                if key in OF_THE_REQUEST:
                    raise ValueError(f"{key} is no setting of a class")
                if key == "share":
                    share = float(text)
                else:
                    settings[key] = parse(key, text)
            if not 0 < share < float("inf"):
                raise ValueError(f"share is {share:g}; allowed: more than 0, and finite")
        except ValueError as error:
            raise typer.BadParameter(f"{option!r}: {error}", param_hint="--class") from error
        classes.append(RequestClass(name, share, settings))
    return classes
