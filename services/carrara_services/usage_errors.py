"""From what parts refuse to what the command line knows: a wrong use of it, with status 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from carrara_models.errors import BadFieldError


@contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Makes a `typer.BadParameter` of a bad field, with its flag, and of these kinds of errors."""
    try:
        yield
    except BadFieldError as error:
        flag = f"--{error.field.replace('_', '-')}"
        raise typer.BadParameter(str(error), param_hint=flag) from error
    except kinds as error:
        raise typer.BadParameter(str(error)) from error
