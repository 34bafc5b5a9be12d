"""What every peer that runs diffusers shares: the pipeline, its settings, groups of equal ones.

Needs torch and diffusers, nothing of Carrara's: it runs in the peers' own environments.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from PIL import Image

# As Carrara calls them, with what it sets whatever the checkpoint's own config says.
PLAIN_SIGMAS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", PLAIN_SIGMAS),
    "heun": ("HeunDiscreteScheduler", PLAIN_SIGMAS),
}


DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Computing:
    """How a pipeline computes.

    Attributes:
        num_threads: That torch computes with on the CPU.
        device: As torch names it.
        dtype: One of `DTYPES`.
        compiled: Whether the UNet is compiled and laid out channels last, as diffusers' guide to
            faster inference advises: quicker once it is, after a minute or so for each shape; on a
            GPU with CUDA graphs, which one thread alone can replay.
    """

    num_threads: int
    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = False


@dataclass(frozen=True)
class Wanted:
    """What POST /generate takes, by the pipeline's names.

    Attributes:
        scheduler: One of `SCHEDULERS`; None is the checkpoint's own.
    """

    prompt: str
    num_inference_steps: int
    guidance_scale: float
    seed: int
    scheduler: str | None = None
    height: int | None = None
    width: int | None = None

    @property
    def group(self) -> tuple[object, ...]:
        """Pictures of one group can share a call: the pipeline takes one value of each of these."""
        return (
            self.num_inference_steps,
            self.guidance_scale,
            self.scheduler,
            self.height,
            self.width,
        )


def computing_from(arguments: argparse.Namespace) -> Computing:
    """What the command line of a server says of it."""
    return Computing(
        num_threads=arguments.num_threads,
        device=arguments.device,
        dtype=arguments.dtype,
        compiled=arguments.compile,
    )


def read_arguments() -> argparse.Namespace:
    """The command line of every server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument("--num-threads", type=int, required=True, help="of each worker")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with the weights")
    parser.add_argument("--max-batch-size", type=int, default=16, help="of peers that batch")
    parser.add_argument("--compile", action="store_true", help="as diffusers' guide advises")
    return parser.parse_args()


class Painter:
    """The checkpoint's pipeline, in one process.

    Args:
        checkpoint: A folder in diffusers' layout, of any pipeline from text to image.
    """

    def __init__(self, checkpoint: Path, computing: Computing) -> None:
        torch.set_num_threads(computing.num_threads)
        for library in (diffusers, transformers):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            checkpoint, local_files_only=True, dtype=getattr(torch, computing.dtype)
        ).to(computing.device)
        pipeline.set_progress_bar_config(disable=True)
        self._own = pipeline.scheduler
        if computing.compiled:
            pipeline.unet.to(memory_format=torch.channels_last)
            if computing.device == "cpu":
                pipeline.unet = torch.compile(pipeline.unet, dynamic=True)
            else:
                pipeline.unet = torch.compile(pipeline.unet, mode="reduce-overhead")
        self._pipeline = pipeline

    def paint(self, wanted: Sequence[Wanted]) -> list[Image.Image]:
        """One picture of each, in their order; those of equal settings in one call."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, each in enumerate(wanted):
            groups.setdefault(each.group, []).append(index)
        pictures: dict[int, Image.Image] = {}
        for indices in groups.values():
            pictures.update(zip(indices, self._call([wanted[i] for i in indices]), strict=True))
        return [pictures[index] for index in range(len(wanted))]

    def paint_png(self, wanted: Sequence[Wanted]) -> list[bytes]:
        """The same as PNG files."""
        return [as_png(picture) for picture in self.paint(wanted)]

    def _call(self, wanted: Sequence[Wanted]) -> list[Image.Image]:
        first = wanted[0]
        class_name, changes = type(self._own).__name__, {}
        if first.scheduler is not None:
            class_name, changes = SCHEDULERS[first.scheduler]
        scheduler = getattr(diffusers, class_name).from_config(self._own.config, **changes)
        self._pipeline.scheduler = scheduler
        images: list[Image.Image] = self._pipeline(
            [each.prompt for each in wanted],
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            height=first.height,
            width=first.width,
            generator=[torch.Generator("cpu").manual_seed(each.seed) for each in wanted],
        ).images
        return images


def as_png(picture: Image.Image) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
