"""Forwards that have something faster for the shapes of a stage's warm-up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import torch

from carrara_models.acceleration.calls import kind_of

Forward = Callable[..., Any]


class WarmedForward:
    """A network's forward: what was made ready for a shape in the warm-up, and eager for others.

    To make it takes up to minutes, in which a stage would answer nobody. The number of tokens is
    left open.

    Args:
        eager: The network's own forward, which takes any shape.
        any_rows: Whether what `ready` gives takes any number of rows.

    Attributes:
        forwards: What is ready, by kind of call.
        ready: Gets a call's arguments and gives what will do for all calls like it. None from when
            the warm-up is over, so that what it was made from is let go.
        warms_up: Whether what it meets is made ready.
    """

    def __init__(
        self,
        eager: Forward,
        *,
        ready: Callable[[tuple[Any, ...], dict[str, Any]], Forward],
        any_rows: bool = False,
    ) -> None:
        self.ready: Callable[[tuple[Any, ...], dict[str, Any]], Forward] | None = ready
        self.warms_up = False
        self._eager, self._any_rows = eager, any_rows
        self.forwards: dict[Hashable, Forward] = {}

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Computes as the network does."""
        kind = kind_of((arguments, named), any_rows=self._any_rows)
        if self.warms_up and self.ready is not None and kind not in self.forwards:
            self.forwards[kind] = self.ready(arguments, named)
        return self.forwards.get(kind, self._eager)(*arguments, **named)


@contextlib.contextmanager
def warming_up(networks: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Makes ready, while entered, whatever shapes the networks are called with; once for each."""
    forwards = [each.forward for each in networks if isinstance(each.forward, WarmedForward)]
    for forward in forwards:
        forward.warms_up = True
    try:
        yield
    finally:
        for forward in forwards:
            forward.warms_up, forward.ready = False, None
