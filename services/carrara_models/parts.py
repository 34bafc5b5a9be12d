"""The seam between the parts and whoever runs them: what each kind of part offers.

One request walks through it thus: `TextEncoder.encode` makes tensors from the prompt;
`Denoiser.start` turns them and a seed into a `Job`; `predict` and `advance` take the job through
its steps, together with whatever other jobs are there; `finish` gives the `Sample`, for the next
denoiser (a prior is followed by the UNet that paints, that one perhaps by super-resolution) or for
a `Decoder`, which makes the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch

from carrara_models.contracts import Argument, Component, Contract, Port
from carrara_models.errors import NumericalError


@dataclass(frozen=True)
class Numerics:
    """How the numbers of a part come about.

    Attributes:
        exact: Each request's are those that it would have alone, bit for bit.
        row_buckets: Numbers of rows, ascending, that the network is called with, in place of any:
            what lacks is filled up with copies. Of a network that is compiled for each shape.
    """

    exact: bool = True
    row_buckets: tuple[int, ...] = ()


EXACT = Numerics()

# From a job before a step, and what the network made of it, [rows, ...], to a small picture of what
# the job is taken for: uint8 [h, w, 3], no side longer than `limits.MAX_PREVIEW_SIDE`.
Preview = Callable[["Job", torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Described:
    """What every part tells about itself; `Describe` answers with it.

    Attributes:
        fingerprint: SHA-256 over the components' fingerprints.
        family: Name of a row of the table of families.
        stage: Name of the part in its family, such as "prior".
        components: Exactly what was loaded.
        arguments: What may be set, without the prefix that tells this stage from its siblings.
        dtype: Of what it takes and makes; its networks may compute in another one.
        numerics: How its numbers come about.
        preview: How its jobs are shown under way; None of a part that cannot show them.
    """

    fingerprint: str
    family: str
    stage: str
    components: tuple[Component, ...]
    consumes: tuple[Port, ...]
    produces: tuple[Contract, ...]
    arguments: tuple[Argument, ...]
    device: torch.device
    dtype: torch.dtype
    numerics: Numerics = field(default=EXACT, kw_only=True)
    preview: Preview | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Texts:
    """What a text encoder is asked for; None in any place: not given, the part's default.

    Attributes:
        prompt: None where only the negative half is wanted.
        negative: Whether the negative half is wanted too. An absent `negative_prompt` and an empty
            one differ: SDXL makes zeros of the first.
        max_sequence_length: In tokens.
        clip_skip: How many of CLIP's last layers are skipped.
        clean_caption: Whether the caption is cleaned as DeepFloyd IF was trained.
        complex_human_instruction: What Sana's language model is told before the prompt; "" = none.
    """

    prompt: str | None
    prompt_2: str | None = None
    prompt_3: str | None = None
    negative: bool = False
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    negative_prompt_3: str | None = None
    max_sequence_length: int | None = None
    clip_skip: int | None = None
    clean_caption: bool | None = None
    complex_human_instruction: str | None = None

    @property
    def halves(self) -> tuple[Texts, ...]:
        """The halves that are asked for, for encoders that encode them one by one."""
        positive = replace(
            self,
            negative=False,
            negative_prompt=None,
            negative_prompt_2=None,
            negative_prompt_3=None,
        )
        negative = replace(self, prompt=None, prompt_2=None, prompt_3=None)
        wanted = ([positive] if self.prompt is not None else []) + [negative] * self.negative
        return tuple(wanted)

    @property
    def group(self) -> Texts:
        """Pieces of equal group may be encoded together: they differ in their words alone."""
        words = {name: "" for name in _WORDS if getattr(self, name) is not None}
        return replace(self, **words)  # type: ignore[arg-type]


_WORDS = (
    *("prompt", "prompt_2", "prompt_3"),
    *("negative_prompt", "negative_prompt_2", "negative_prompt_3"),
)


@dataclass(frozen=True)
class Encoded:
    """What a text encoder makes of one prompt.

    Attributes:
        tensors: `prompt_embeds` [1, L, D], whatever else the family conditions on
            (`pooled_prompt_embeds` [1, P], `prompt_attention_mask` [1, L]), and, where the negative
            half was asked for, the `negative_` twin of each.
        truncated: For each field that was too long, the words that were cut.
    """

    tensors: Mapping[str, torch.Tensor]
    truncated: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What one part hands to the next, for one image.

    Attributes:
        tensors: `latents` [1, C, h, w], `pixels` [1, 3, H, W] in [-1, 1], or `image_embeds` [1, E]
            with its `negative_` twin.
        height: Pixels that it stands for; 0 for an image embedding, which has no size.
        width: Likewise.
        random_state: CPU state of the torch generator after the last draw, uint8 [5056]; None
            before any.
        resize_to: Height and width that the decoded picture is scaled and cropped to; None leaves
            it as it is.
    """

    tensors: Mapping[str, torch.Tensor]
    height: int
    width: int
    random_state: torch.Tensor | None = None
    resize_to: tuple[int, int] | None = None


@dataclass(frozen=True)
class DenoisingRequest:
    """One image's work for a denoiser; what is None takes the part's default.

    Attributes:
        conditioning: Tensors of the text encoder; without `negative_` ones guidance is off.
        random_state: A seed in [0, 2^64), or the CPU state of a torch generator, uint8 [5056].
        consumer: What the next part consumes; gives size, scale and shift to a part without the
            VAE. None: the sample is the picture.
        sample: Of the part before, where there is one.
        true_cfg_scale: Of classifier-free guidance where `guidance_scale` is an input of the
            network instead.
        eta: Share of fresh noise in each DDIM step, 0 to 1.
        guidance_rescale: Of the guided prediction's deviation, 0 to 1 (Lin et al. 2023).
        noise_level: Timestep to which the low-resolution picture is noised.
        original_size: [height, width] that SDXL is told the training picture had; and so the
            others below.
        use_resolution_binning: Paint at the nearest size that the model was trained at, and have
            the decoder resize.
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
    true_cfg_scale: float | None = None
    eta: float | None = None
    guidance_rescale: float | None = None
    noise_level: int | None = None
    original_size: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_target_size: tuple[int, int] | None = None
    negative_crops_coords_top_left: tuple[int, int] | None = None
    use_resolution_binning: bool | None = None


@dataclass(frozen=True)
class JobState:
    """What a running job has beyond its request.

    Attributes:
        step: Network calls done.
        tensors: `latents`, and what the steps before have left for those to come: `history.0` and
            so on, or `scheduler.NAME`, with `.0` and so on where it is a list; numbers have no
            dimension.
        random_state: CPU state of its torch generator, uint8 [5056].
    """

    step: int
    tensors: Mapping[str, torch.Tensor]
    random_state: torch.Tensor


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

    def state(self) -> JobState | None:
        """Where it is; None if nobody could go on from there."""

    def resume(self, state: JobState) -> None:
        """Goes, having just started, to where a job of an equal request was.

        Raises:
            JobStateError: The state is of no such job.
        """


class Part(Protocol):
    """What all parts tell about themselves: the attributes of `Described`."""

    fingerprint: str
    family: str
    stage: str
    components: tuple[Component, ...]
    consumes: tuple[Port, ...]
    produces: tuple[Contract, ...]
    arguments: tuple[Argument, ...]
    device: torch.device
    dtype: torch.dtype
    numerics: Numerics
    preview: Preview | None


class TextEncoder(Part, Protocol):
    """Prompt to embeddings."""

    def split(self, texts: Texts) -> Sequence[Texts]:
        """Takes a request apart into what can be encoded, and remembered, one by one.

        Mostly `texts.halves`; an encoder whose pipeline encodes both halves in one call keeps them
        together, as their numbers depend on it.
        """

    def encode(self, pieces: Sequence[Texts]) -> list[Encoded | NumericalError]:
        """Encodes pieces of `split`; in fast numerics together.

        Texts that are too long are cut, and `Encoded.truncated` names the words.

        Args:
            pieces: Of one `Texts.group`; whatever their words, they are padded to one length.

        Returns:
            For each, in order, what it makes; or what is wrong with it, where it holds NaN or
            infinity.

        Raises:
            BadFieldError: An option is outside its range.
        """


@runtime_checkable
class Denoiser(Part, Protocol):
    """Noise to a sample, step by step, many jobs at once: priors, generators, super-resolution."""

    def rows(self, request: DenoisingRequest) -> int:
        """How many rows of the network's batch the request's job will have."""

    def start(self, request: DenoisingRequest) -> Job:
        """Checks the request, draws the noise and sets up the job's own scheduler.

        Raises:
            BadFieldError: A setting is outside its range.
            ContractError: The conditioning, the sample or the consumer does not fit.
        """

    def predict(self, jobs: Sequence[Job]) -> list[torch.Tensor]:
        """Calls the network once for jobs of one group; gives one output per job, in order."""

    def advance(
        self, jobs: Sequence[Job], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        """Takes jobs one step on, each by its own scheduler.

        Returns:
            For each job, in order, what went wrong with it and with no other: a `NumericalError`
            where the new sample holds NaN or infinity.
        """

    def finish(self, job: Job) -> Sample:
        """Gives the sample of a job whose steps are done."""


@runtime_checkable
class Decoder(Part, Protocol):
    """Samples to pixels."""

    def decode(self, samples: Sequence[Sample]) -> list[torch.Tensor | NumericalError]:
        """Decodes images; in fast numerics together.

        Args:
            samples: Of equal shapes.

        Returns:
            For each, in order, [1, 3, H, W] in this part's dtype, about in [-1, 1], as who makes a
            picture of it clamps; or what is wrong with it, where it holds NaN or infinity.

        Raises:
            ContractError: A sample does not fit.
        """
