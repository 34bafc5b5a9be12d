"""Bounds on what a data set's columns say of a picture, such as similarity or punsafe."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """A column whose number has to lie in a range, both ends included."""

    column: str
    minimum: float = -math.inf
    maximum: float = math.inf

    def __str__(self) -> str:
        return f"{self.minimum:g} <= {self.column} <= {self.maximum:g}"


def parse_bound(text: str) -> Bound:
    """Reads a bound such as "similarity>=0.3" or "punsafe<=0.1".

    Raises:
        ValueError: It is none.
    """
    match = re.fullmatch(r"\s*(.+?)\s*(<=|>=)\s*(\S+)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is no bound; one reads COLUMN<=NUMBER or COLUMN>=NUMBER")
    column, sign, number = match.groups()
    try:
        value = float(number)
    except ValueError:
        raise ValueError(f"{number!r} in the bound {text!r} is no number") from None
    return Bound(column, maximum=value) if sign == "<=" else Bound(column, minimum=value)


def within(bounds: Iterable[Bound], row: Mapping[str, object]) -> bool:
    """Whether `row` keeps all bounds; a column that is missing or holds no number does not."""
    for bound in bounds:
        try:
            value = float(row[bound.column])
        except (KeyError, TypeError, ValueError):
            return False
        if not bound.minimum <= value <= bound.maximum:  # NaN keeps none
            return False
    return True
