"""What a caller gets: events on the way, then pictures with settings, provenance and usage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from carrara.arguments import Value


@dataclass(frozen=True)
class Queued:
    """A stage has put one image's job into its waiting line.

    Attributes:
        role: "generator" or "decoder".
        stage_index: The stage's place in the cascade, text encoders included, from 0.
        position: Its place in the line; 1 is next.
        image_index: Which image of the request, from 0.
        expected_start_ms: From now, as far as the stage can tell; None if it cannot.
    """

    role: str
    stage_index: int
    position: int
    image_index: int
    expected_start_ms: float | None = None


@dataclass(frozen=True)
class Progress:
    """A stage has done a step. Each stage's last one has `step == total_steps`.

    Attributes:
        role: "text-encoder", "generator" or "decoder".
        stage_index: The stage's place in the cascade, text encoders included, from 0.
        step: Steps done; after a replay they count from 1 again.
        total_steps: Network calls; PNDM and Heun make more than `num_inference_steps`.
        image_index: Which image of the request, from 0; None for text encoders, whom all share.
    """

    role: str
    stage_index: int
    step: int
    total_steps: int
    image_index: int | None


@dataclass(frozen=True)
class Preview:
    """What an image under way looks like.

    Attributes:
        role: "generator" or "decoder".
        stage_index: The stage's place in the cascade, text encoders included, from 0.
        step: Steps done.
        image: Small: its longest side has at most 128 pixels.
        image_index: Which image of the request, from 0.
    """

    role: str
    stage_index: int
    step: int
    image: Image.Image
    image_index: int


@dataclass(frozen=True)
class StageUsage:
    """What one stage spent on a request, summed over its images.

    Attributes:
        stage: Its name in the family, such as "prior"; mostly that of its role.
        address: As given to `connect`.
        fingerprint: Of the stage's weights, SHA-256, hexadecimal.
        attempts: Calls made to the stage, replays included: without any, one for a text encoder and
            one per image for the others.
        call_ms: From the call to its result as this client saw it, replays and the pauses before
            them included; what is more than queue and running is messages and lost attempts.
        running_ms: From leaving the queue to the result.
        compute_ms: Its share of every batch that it was in.
        rows: Rows of the network's batches, summed over steps.
    """

    role: str
    address: str
    fingerprint: str
    attempts: int = 0
    call_ms: float = 0.0
    queue_ms: float = 0.0
    running_ms: float = 0.0
    compute_ms: float = 0.0
    steps: int = 0
    rows: int = 0
    cache_hits: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    stage: str = ""


@dataclass(frozen=True)
class GenerationWarning:
    """Something that the caller should know about the pictures.

    Attributes:
        code: Such as "PROMPT_TRUNCATED".
        message: One sentence.
        field: The setting that it is about, such as "prompt"; "" where there is none.
        detail: Of a truncated prompt, the words that were cut.
    """

    code: str
    message: str
    field: str = ""
    detail: str = ""


@dataclass(frozen=True)
class GeneratedImage:
    """One picture.

    Attributes:
        image: RGB, height x width as asked.
        seed: What it can be painted with again.
        settings: Resolved settings and provenance, as `save` writes them.
    """

    image: Image.Image
    seed: int
    settings: Mapping[str, str] = field(repr=False)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the picture; a PNG file also holds settings and provenance as text chunks.

        Args:
            path: Its suffix chooses the format.

        Raises:
            ValueError: Pillow knows no format of that suffix.
            OSError: The file cannot be written.
        """
        options: dict[str, Any] = {}
        if Path(path).suffix.lower() == ".png":
            options["pnginfo"] = chunks = PngInfo()
            for key, value in self.settings.items():
                chunks.add_text(key, value)
        self.image.save(path, **options)


@dataclass(frozen=True)
class GenerationResult:
    """What one `generate` made.

    Attributes:
        prompt: As given; None of a cascade without text.
        usage: One for each stage, in the order of the chain.
        numerics: "exact" where all bits are those of the one-process pipeline, else "fast".
        warnings: Each of them once.
        settings: All settings of all generators and decoders, as given, else the stages' defaults.
        num_inference_steps: Of the stage that paints; None where no stage has steps.
        guidance_scale: Likewise.
        scheduler: Likewise.
        height: Of the pictures, in pixels.
        width: Of the pictures, in pixels.
        total_ms: On the caller's clock, from the call to the result.
    """

    prompt: str | None
    negative_prompt: str | None
    images: tuple[GeneratedImage, ...]
    usage: tuple[StageUsage, ...]
    numerics: str
    warnings: tuple[GenerationWarning, ...]
    num_inference_steps: int | None
    guidance_scale: float | None
    scheduler: str | None
    height: int
    width: int
    total_ms: float
    settings: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """The last event of a stream."""

    result: GenerationResult


Event = Queued | Progress | Preview | Finished


def png_settings(settings: Mapping[str, object]) -> dict[str, str]:
    """Writes settings as PNG text: what is None is left out, what is no text becomes JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in settings.items()
        if value is not None
    }
