"""Options that take several values, separated by commas, and the settings that they span."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from google.protobuf.descriptor import FieldDescriptor

from carrara.arguments import kind_of, parse


def read_sweep(named: Mapping[str, str | None], more: Iterable[str]) -> list[dict[str, Any]]:
    """All combinations of the values given, the last option's running fastest.

    Args:
        named: Of options of their own, by the setting's name; None where it was not given.
        more: NAME=VALUE.

    Raises:
        typer.BadParameter: A value is not of its setting's type, or a setting is given twice.
    """
    given = [
        (f"--{name.replace('_', '-')}", name, text)
        for name, text in named.items()
        if text is not None
    ]
    for option in more:
        name, equals, text = option.partition("=")
        if not equals:
            raise typer.BadParameter(f"{option!r} is not NAME=VALUE", param_hint="--set")
        given.append((f"--set {name}", name, text))
    values: dict[str, list[Any]] = {}
    for flag, name, text in given:
        if name in values:
            raise typer.BadParameter(f"{name} is given twice", param_hint=flag)
        try:
            values[name] = [parse(name, part) for part in _parts(name, text)]
        except ValueError as error:
            raise typer.BadParameter(f"{text!r}: {error}", param_hint=flag) from error
    return [
        dict(zip(values, combination, strict=True))
        for combination in itertools.product(*values.values())
    ]


def _parts(name: str, text: str) -> list[str]:
    """Of texts, which may hold commas, only schedulers' names are several; of sizes, none."""
    field = kind_of(name)
    if field is None or field.is_repeated:
        return [text]
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not name.endswith("scheduler"):
        return [text]
    return [part.strip() for part in text.split(",")]
