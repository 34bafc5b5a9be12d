"""The seam between the parts and whoever runs them: what encoder, generator and decoder offer.

One request walks through it thus: `TextEncoder.encode_text` makes tensors from the prompt;
`Generator.start` turns them and a seed into a `Job`; `predict` and `advance` take the job through
its steps, together with whatever other jobs are there; `finish` gives the `Sample`;
`Decoder.decode` makes the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from carrara_models.contracts import Argument, Component, Contract, Port


@dataclass(frozen=True)
class Encoded:
    """What a text encoder makes of one prompt.

    Attributes:
        tensors: `prompt_embeds` [1, L, D] and, where guidance was asked for, its `negative_` twin.
        truncated: For each field that was too long, the words that were cut.
    """

    tensors: Mapping[str, torch.Tensor]
    truncated: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What one part hands to the next, for one image.

    Attributes:
        tensors: `latents` [1, C, h, w], or `pixels` [1, 3, H, W] in [-1, 1].
        random_state: CPU state of the torch generator after the last draw, uint8 [5056]; None
            before any.
        height: Pixels that it stands for.
        width: Pixels that it stands for.
    """

    tensors: Mapping[str, torch.Tensor]
    height: int
    width: int
    random_state: torch.Tensor | None = None


@dataclass(frozen=True)
class DenoisingRequest:
    """One image's work for a diffusion part; what is None takes the part's default.

    Attributes:
        conditioning: Tensors of the text encoder; guidance is on exactly when `negative_` ones are
            there.
        random_state: A seed in [0, 2^64), or the CPU state of a torch generator, uint8 [5056].
        consumer: What the next part consumes; gives size, scale and shift to a part without the
            VAE.
        sample: Of the part before, where there is one.
    """

    conditioning: Mapping[str, torch.Tensor]
    random_state: int | torch.Tensor
    consumer: Contract | None = None
    sample: Sample | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    height: int | None = None
    width: int | None = None


class Job(Protocol):
    """One image under way. Everything that it changes from step to step is its own."""

    @property
    def step(self) -> int:
        """Network calls done."""

    @property
    def num_steps(self) -> int:
        """Network calls that it takes; with Heun and PNDM more than inference steps."""

    @property
    def rows(self) -> int:
        """Rows that it puts into the network's batch: 2 with guidance, else 1."""

    @property
    def group(self) -> tuple[object, ...]:
        """Jobs of equal group may share a network call."""


class Part(Protocol):
    """What all parts tell about themselves; `Describe` answers with it.

    Attributes:
        fingerprint: SHA-256 over the components' fingerprints (and the default scheduler's config).
        components: Exactly what was loaded.
    """

    fingerprint: str
    family: str
    components: tuple[Component, ...]
    consumes: tuple[Port, ...]
    produces: tuple[Contract, ...]
    arguments: tuple[Argument, ...]
    device: torch.device
    dtype: torch.dtype


class TextEncoder(Part, Protocol):
    """Prompt to embeddings."""

    def encode_text(self, text: str, *, field: str) -> Encoded:
        """Encodes one text.

        Args:
            text: Any string; too long ones are cut, and `Encoded.truncated` names the words.
            field: "prompt" or "negative_prompt"; the tensors' names follow it.
        """


class Generator(Part, Protocol):
    """Embeddings and noise to a sample, step by step, many jobs at once."""

    def start(self, request: DenoisingRequest) -> Job:
        """Checks the request, draws the noise and sets up the job's own scheduler.

        Raises:
            BadFieldError: A setting is outside its range.
            ContractError: The conditioning or the consumer does not fit.
        """

    def predict(self, jobs: Sequence[Job]) -> list[torch.Tensor]:
        """Calls the network once for jobs of one group; gives one output per job, in order."""

    def advance(self, job: Job, output: torch.Tensor) -> None:
        """Moves one job one step on by its own scheduler.

        Raises:
            NumericalError: The new latents hold NaN or infinity.
        """

    def finish(self, job: Job) -> Sample:
        """Gives the sample of a job whose steps are done."""


class Decoder(Part, Protocol):
    """A sample to pixels."""

    def decode(self, sample: Sample) -> torch.Tensor:
        """Decodes one image.

        Returns:
            float32 [1, 3, H, W] in [-1, 1].

        Raises:
            ContractError: The sample does not fit.
            NumericalError: The pixels hold NaN or infinity.
        """
