"""What a part takes and makes, as values: the words in which stages agree with their neighbours.

Plain dataclasses, without torch or protobuf; `carrara_services.serving.describe` turns them into
messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What sort of numbers a payload holds; the names are those of the enum `carrara.v1.Kind`."""

    CONDITIONING = "KIND_CONDITIONING"
    IMAGE_EMBEDS = "KIND_IMAGE_EMBEDS"
    LATENTS = "KIND_LATENTS"
    PIXELS = "KIND_PIXELS"
    IMAGE = "KIND_IMAGE"


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor of a payload.

    Attributes:
        shape: Its dimensions; 0 stands for any size.
        required: Whether a payload without it is refused.
    """

    name: str
    shape: tuple[int, ...]
    required: bool = True


@dataclass(frozen=True)
class Contract:
    """What a part consumes or produces.

    Attributes:
        space: Fingerprint of the component that defines the numbers (the text encoder of
            embeddings, the VAE of latents), "rgb" for pixels, "" where this part does not know.
        size_factor: Pixels per latent cell; 0 where this part does not know. Never a guess.
        scaling_factor: `latents = (z - shift_factor) * scaling_factor`; 0 where this part does not
            know.
    """

    kind: Kind
    space: str = ""
    tensors: tuple[TensorSpec, ...] = ()
    size_factor: int = 0
    scaling_factor: float = 0.0
    shift_factor: float = 0.0


@dataclass(frozen=True)
class Port:
    """One input of a part; a part runs without it where `required` is false.

    Attributes:
        also_accepts: Other spaces, which the operator allows.
    """

    contract: Contract
    required: bool = True
    also_accepts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Argument:
    """One setting that a part takes, with its range and default.

    Attributes:
        choices: For a name: the known ones, the default first.
        multiple_of: 0 where any number does.
        length: How many numbers it is made of, such as 2 for a size; 0 for a single one.
    """

    name: str
    minimum: float | None = None
    maximum: float | None = None
    default: float | None = None
    multiple_of: int = 0
    choices: tuple[str, ...] = ()
    length: int = 0


@dataclass(frozen=True)
class Component:
    """One loaded sub-folder of a checkpoint.

    Attributes:
        fingerprint: SHA-256, hexadecimal, over its canonical config and its tensors.
        parameters: How many numbers its weights hold.
    """

    name: str
    class_name: str
    fingerprint: str
    parameters: int


def conditioning_contract(shapes: Mapping[str, tuple[int, ...]], *, space: str) -> Contract:
    """The contract of a text encoder's tensors.

    Args:
        shapes: Of each tensor by its name; the `negative_` twin of each is optional.
    """
    return Contract(
        kind=Kind.CONDITIONING,
        space=space,
        tensors=(
            *(TensorSpec(name, shape) for name, shape in shapes.items()),
            *(TensorSpec(f"negative_{n}", shape, required=False) for n, shape in shapes.items()),
        ),
    )


# What a part makes that has pixels: the numbers for a next part, or the picture for the caller.
PIXELS = Contract(kind=Kind.PIXELS, space="rgb", tensors=(TensorSpec("pixels", (1, 3, 0, 0)),))
IMAGE = Contract(kind=Kind.IMAGE, space="rgb", tensors=(TensorSpec("image", (0, 0, 3)),))
