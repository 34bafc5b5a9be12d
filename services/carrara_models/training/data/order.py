"""The order that a data set is seen in: an endless row of positions, each pass shuffled anew.

The item at a position follows from the seed and the position alone, so that any worker can look up
any step, and a resumed run sees what the uninterrupted one would have seen.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from carrara_models.training.data.records import DataError
from carrara_models.training.randomness import Draw, rng_of

Item = TypeVar("Item")
ItemOut = TypeVar("ItemOut", covariant=True)


class Order(Protocol[ItemOut]):
    """What stands at which position."""

    def at(self, position: int) -> ItemOut:
        """The item at `position`, from 0 without end."""

    def spares(self, position: int, rng: np.random.Generator) -> Iterator[ItemOut]:
        """Items, without end, that may stand in for the one at `position`."""


class ListOrder(Generic[Item]):
    """The items of a list, all of them shuffled in every pass."""

    def __init__(self, items: Sequence[Item], *, seed: int) -> None:
        self._items, self._seed = items, seed
        self._pass: tuple[int, np.ndarray] | None = None  # number and permutation of the last used

    def at(self, position: int) -> Item:
        """The item at `position`."""
        number, place = divmod(position, len(self._items))
        if self._pass is None or self._pass[0] != number:
            permutation = rng_of(self._seed, Draw.LIST, number).permutation(len(self._items))
            self._pass = number, permutation
        return self._items[self._pass[1][place]]

    def spares(self, position: int, rng: np.random.Generator) -> Iterator[Item]:
        """Items, drawn evenly."""
        while True:
            yield self._items[rng.integers(len(self._items))]


class ShardOrder(Generic[Item]):
    """The items of many shards: in every pass the shards are shuffled, then windows of the row.

    Only one window and one shard are held. To find a position, the shards before it are scanned
    for how many items they hold, each once; every shard at most, however late the position.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        scan: Callable[[Path], Sequence[Item]],
        *,
        window: int,
        seed: int,
    ) -> None:
        """Scans nothing yet.

        Args:
            shards: The files.
            scan: The items of a shard; the same in every call.
            window: How many items are shuffled at a time.
            seed: Of the order.
        """
        self._shards, self._scan, self._size, self._seed = shards, scan, window, seed
        self._counts: dict[Path, int] = {}
        self._scanned: tuple[Path, Sequence[Item]] | None = None
        self._start, self._window = 0, list[Item]()

    def at(self, position: int) -> Item:
        """The item at `position`.

        Raises:
            DataError: No shard holds any.
        """
        if not self._start <= position < self._start + len(self._window):
            number, place = self._pass_at(position)
            first = place - place % self._size
            window = self._items(number, first, first + self._size)
            shuffled = rng_of(self._seed, Draw.WINDOW, number, first).permutation(len(window))
            self._window = [window[index] for index in shuffled]
            self._start = position - (place - first)
        return self._window[position - self._start]

    def spares(self, position: int, rng: np.random.Generator) -> Iterator[Item]:
        """The items of the position's window in another order, then those of the windows after."""
        while True:
            self.at(position)
            window, after = self._window, self._start + len(self._window)
            yield from (window[index] for index in rng.permutation(len(window)))
            position = after

    def _pass_at(self, position: int) -> tuple[int, int]:
        """The pass and the place in it; scans no more shards than the first pass needs."""
        seen = 0
        for shard in self._shuffled(0):
            seen += self._count(shard)
            if position < seen:
                return 0, position
        if seen == 0:
            raise DataError(f"no picture in any of {len(self._shards)} shards is wanted")
        return divmod(position, seen)

    def _items(self, number: int, start: int, stop: int) -> list[Item]:
        items: list[Item] = []
        first = 0
        for shard in self._shuffled(number):
            after = first + self._count(shard)
            if after > start:
                items += self._items_of(shard)[max(0, start - first) : stop - first]
            first = after
            if first >= stop:
                break
        return items

    def _shuffled(self, number: int) -> list[Path]:
        order = rng_of(self._seed, Draw.SHARDS, number).permutation(len(self._shards))
        return [self._shards[index] for index in order]

    def _count(self, shard: Path) -> int:
        if shard not in self._counts:
            self._counts[shard] = len(self._items_of(shard))
        return self._counts[shard]

    def _items_of(self, shard: Path) -> Sequence[Item]:
        if self._scanned is None or self._scanned[0] != shard:
            self._scanned = shard, self._scan(shard)
        return self._scanned[1]
