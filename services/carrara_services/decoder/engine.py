"""The decoder's engine: one image at a time, from a sample to bytes."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from carrara_models.pixels import to_uint8
from carrara_models.parts import Decoder, Sample
from carrara_services.admission import Finished, Progress, Queued, finished, follow
from carrara_services.decoder import ROLE
from carrara_services.worker import Worker

# Latent cells a side of the warm-up's sample.
_WARM_UP_CELLS = 8


@dataclass(frozen=True)
class DecodeWork:
    """One image to decode.

    Attributes:
        png: Whether the result is a PNG file's bytes instead of [H, W, 3].
    """

    sample: Sample
    png: bool


@dataclass(frozen=True)
class DecodedImage:
    """One picture.

    Attributes:
        data: uint8 [H, W, 3] in [0, 255], or uint8 [bytes] of a PNG file.
    """

    data: np.ndarray
    height: int
    width: int


class DecoderEngine:
    """One decoder and the thread that it works in.

    One image at a time, since a VAE's numbers depend on what shares its batch.

    Attributes:
        part: The decoder itself.
        worker: Where its work waits and runs.
    """

    def __init__(self, part: Decoder, *, max_queue_jobs: int) -> None:
        self.part = part
        self.worker = Worker(self._decode, name="decoding", max_queue_jobs=max_queue_jobs)

    def decode(
        self, work: DecodeWork, *, deadline: float | None
    ) -> AsyncIterator[Queued | Progress | Finished]:
        """Decodes one image and yields what happens; the result is a `DecodedImage`."""
        return follow(self.worker.line, work, deadline=deadline, stage=ROLE)

    async def warm_up(self) -> None:
        """Decodes a small black sample, on the path that requests take."""
        contract = self.part.consumes[0].contract
        side = _WARM_UP_CELLS * contract.size_factor
        sample = Sample(
            tensors={
                spec.name: torch.zeros([size or _WARM_UP_CELLS for size in spec.shape])
                for spec in contract.tensors
            },
            height=side,
            width=side,
        )
        work = DecodeWork(sample, png=True)
        await finished(self.worker.line, work, deadline=None, stage=ROLE)

    @torch.inference_mode()
    def _decode(self, work: DecodeWork) -> DecodedImage:
        image = to_uint8(self.part.decode(work.sample))
        height, width, _ = image.shape
        return DecodedImage(_png(image) if work.png else image, height=height, width=width)


def _png(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return np.frombuffer(file.getvalue(), dtype=np.uint8)
