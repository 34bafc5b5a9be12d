"""What a text encoder hands back: numbers that are numbers, and the words that it did not see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from carrara_models.errors import NumericalError
from carrara_models.parts import Described, Encoded, Texts


def encode_pieces(
    part: Described,
    pieces: Sequence[Texts],
    encode: Callable[[Sequence[Texts]], Sequence[Encoded]],
) -> list[Encoded | NumericalError]:
    """Does the work of `carrara_models.parts.TextEncoder.encode`.

    Args:
        encode: Encodes pieces of one group by one call of the network.
    """
    batches = [[piece] for piece in pieces] if part.numerics.exact else [pieces]
    return [_checked(encoded) for batch in batches for encoded in encode(batch)]


def encodings(
    tensors: Mapping[str, torch.Tensor], *, cuts: Sequence[Mapping[str, str]]
) -> list[Encoded]:
    """Makes the results of some pieces.

    Args:
        tensors: By name; as many rows for each piece as for the others.
        cuts: For each piece, the words of each field that were cut; "" where all fitted.
    """
    rows: dict[str, Sequence[torch.Tensor]] = {
        # Cloned, as they are remembered, and a part of a tensor keeps all of it in memory.
        name: [tensor] if len(cuts) == 1 else [part.clone() for part in tensor.chunk(len(cuts))]
        for name, tensor in tensors.items()
    }
    return [
        Encoded(
            {name: chunks[index] for name, chunks in rows.items()},
            truncated={name: words for name, words in cut.items() if words},
        )
        for index, cut in enumerate(cuts)
    ]


def _checked(encoded: Encoded) -> Encoded | NumericalError:
    for name, tensor in encoded.tensors.items():
        if not torch.isfinite(tensor).all():
            return NumericalError(name)
    return encoded
