"""The seam between data sets and trainers: the examples at positions of a run, by them alone.

Step n of a run takes the positions from n times the batch size on; processes and micro-batches
divide them among themselves, so that a run sees the same however it is spread.

It knows nothing of batches, latents or embeddings; dropping captions is the trainers' affair.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from carrara_models.training.data.order import Order
from carrara_models.training.data.pictures import Framing, frame_picture
from carrara_models.training.data.records import DataError, Reason, Record, SkipError
from carrara_models.training.randomness import Draw, rng_of

Item = TypeVar("Item")
MAX_TRIES = 1000  # pictures tried for one example before the data set is given up
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Pictures with captions, and what was skipped on the way to them."""

    pixels: Tensor
    """[B, 3, H, W], float32 in [-1, 1]."""
    captions: list[str]
    skipped: Counter[Reason]

    def skipped_counts(self) -> Tensor:
        """How many were skipped for each `Reason`, in their order, int64."""
        return torch.tensor([self.skipped[reason] for reason in Reason])


class Source(Protocol):
    """Where examples come from."""

    def examples(self, positions: Sequence[int]) -> Examples:
        """The examples there: the same in every process, whatever was asked for before.

        Args:
            positions: From 0 on. As many positions in a row as there are pictures show each once.

        Raises:
            DataError: No picture can be used.
        """


class PictureSource(Generic[Item]):
    """Examples from stored pictures; another picture stands in for one that cannot be used.

    The stand-in is drawn by the example's position. So what later ones are does not depend on how
    many pictures are broken, and nothing need be decoded to go on from a step.
    """

    def __init__(
        self,
        order: Order[Item],
        load: Callable[[Item], Record],
        *,
        framing: Framing,
        seed: int,
        captions_required: bool = True,
    ) -> None:
        """Reads nothing yet.

        Args:
            order: What stands at which position.
            load: Reads an item; raises `SkipError` if that cannot be used.
            framing: The size of the pixels, and what is skipped.
            seed: Of stand-ins, of random crops and of the choice among several captions.
            captions_required: Skips pictures without a caption; otherwise theirs is empty.
        """
        self._order, self._load, self._framing = order, load, framing
        self._seed, self._captions_required = seed, captions_required

    def examples(self, positions: Sequence[int]) -> Examples:
        """The examples at `positions`; see `Source`."""
        skipped = Counter[Reason]()
        pairs = [self._example(position, skipped) for position in positions]
        return Examples(
            pixels=torch.stack([pixels for pixels, _ in pairs]),
            captions=[caption for _, caption in pairs],
            skipped=skipped,
        )

    def _example(self, position: int, skipped: Counter[Reason]) -> tuple[Tensor, str]:
        rng = rng_of(self._seed, Draw.EXAMPLE, position)
        first = self._order.at(position)
        candidates = itertools.chain([first], self._order.spares(position, rng))
        tried = Counter[Reason]()
        for item in itertools.islice(candidates, MAX_TRIES):
            try:
                example = self._read(item, rng)
            except SkipError as skip:
                tried[skip.reason] += 1
                logger.info("skipped %s: %s", item, skip.reason.value)
            else:
                skipped.update(tried)
                return example
        reasons = ", ".join(f"{number} {reason.value}" for reason, number in tried.most_common())
        raise DataError(f"none of the {MAX_TRIES} pictures tried can be used: {reasons}")

    def _read(self, item: Item, rng: np.random.Generator) -> tuple[Tensor, str]:
        record = self._load(item)
        if self._captions_required and not record.captions:
            raise SkipError(Reason.NO_CAPTION)
        pixels = frame_picture(record.picture, self._framing, rng)
        captions = record.captions or ("",)
        return pixels, captions[rng.integers(len(captions))]
