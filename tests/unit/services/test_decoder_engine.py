"""The decoder's engine, on a decoder that is cold at first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from carrara_models.contracts import IMAGE, Contract, Kind, Port, TensorSpec
from carrara_models.parts import EXACT, Numerics, Sample
from carrara_services.decoder.engine import DecoderEngine

LATENTS = Contract(
    kind=Kind.LATENTS,
    space="vae",
    tensors=(TensorSpec("latents", (1, 4, 0, 0)),),
    size_factor=8,
)


@dataclass
class ColdDecoder:
    """Its first picture takes long."""

    decoded: int = 0
    consumes: tuple[Port, ...] = (Port(LATENTS),)
    produces: tuple[Contract, ...] = (IMAGE,)
    numerics: Numerics = field(default=EXACT)

    def decode(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        time.sleep(0.001 if self.decoded else 1.0)
        self.decoded += len(samples)
        return [torch.zeros(1, 3, each.height, each.width) for each in samples]


async def test_what_was_cold_says_nothing_of_the_pace() -> None:
    engine = DecoderEngine(ColdDecoder(), max_queue_jobs=4)
    await engine.warm_up()
    a_picture = float(64 * 64)
    expected = engine.line.seconds(a_picture)
    assert expected is not None
    assert expected < 0.5
    engine.close()
