"""Runs of tiny parts: each trained for a few steps, once, behind those that it stands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from carrara_models.training.commands import train_part
from carrara_models.training.export_runs import export_runs
from carrara_models.training.loop import Pace

STEPS = 4
LOOP = (f"loop.steps={STEPS}", "loop.batch_size=4", "loop.warmup_steps=1")
UNET = (
    "shape.widths=[8,16]",
    "shape.attending=1",
    "shape.attention_heads=2",
    "samples.count=2",
    "samples.num_inference_steps=2",
)
CHECKPOINT = "checkpoint"
TOWERS = ("shape.width=16", "shape.heads=2")
PIXELS = ("resolution=16", *UNET)
LARGE_PIXELS = ("resolution=32", "low_resolution=16", "crop=16", *UNET)
FLOW = ("objective.target=flow", "objective.times=logit-normal", "objective.mean=0")


@dataclass(frozen=True)
class TinyPart:
    """A recipe.

    Attributes:
        behind: The runs that it stands on, by the setting that names their folder.
    """

    part: str
    changes: Sequence[str] = ()
    behind: Mapping[str, str] = field(default_factory=dict)


TINY = {
    "text-encoder": TinyPart("text-encoder", (*TOWERS, "shape.layers=1")),
    "t5": TinyPart("text-encoder", (*TOWERS, "shape.layers=1", "kind=t5")),
    "taught-t5": TinyPart(
        "text-encoder", (*TOWERS, "shape.layers=1", "kind=t5"), {"teacher": "text-encoder"}
    ),
    "autoencoder": TinyPart("autoencoder", ("shape.widths=[8,8]", "shape.resolution=16")),
    "decoder": TinyPart(
        "autoencoder", ("loss.latent_noise=0.1",), {"freeze_encoder": "autoencoder"}
    ),
    "clip": TinyPart(
        "clip",
        (
            *TOWERS,
            "shape.text_layers=1",
            "shape.vision_layers=1",
            "shape.resolution=16",
            "data.max_objects=3",
            'data.languages=["en","zh"]',
        ),
    ),
    "telling-clip": TinyPart(
        "clip",
        (
            *TOWERS,
            "shape.text_layers=1",
            "shape.vision_layers=1",
            "shape.resolution=16",
            "readout=1",
            "patch_readout=1",
            "colour_jitter=0.5",
        ),
        {"text_encoder": "text-encoder"},
    ),
    "latents": TinyPart(
        "generator", UNET, {"text_encoder": "text-encoder", "autoencoder": "autoencoder"}
    ),
    "pixels": TinyPart("generator", PIXELS, {"text_encoder": "t5"}),
    "flow-pixels": TinyPart("generator", (*PIXELS, *FLOW), {"text_encoder": "t5"}),
    "images": TinyPart("generator", UNET, {"clip": "clip", "autoencoder": "autoencoder"}),
    "donated-pixels": TinyPart(
        "generator",
        ("resolution=16", *UNET, "shape.widths=[8,8,16]", "colour_jitter=0.5"),
        {"text_encoder": "taught-t5", "donor": "latents"},
    ),
    "donated-images": TinyPart(
        "generator", UNET, {"clip": "clip", "autoencoder": "autoencoder", "donor": CHECKPOINT}
    ),
    "super-resolution": TinyPart("super-resolution", LARGE_PIXELS, {"text_encoder": "t5"}),
    "prior": TinyPart(
        "prior", ("shape.layers=1", "shape.heads=2", "shape.head_dim=8"), {"clip": "clip"}
    ),
    "unconditional": TinyPart(
        "unconditional",
        ("shape.widths=[8,16]", "shape.resolution=16", "sample_count=2", "sample_steps=2"),
    ),
}


class TinyRuns:
    """Trains the parts of `TINY`, each when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, name: str) -> Path:
        """The folder of a finished run, or of the checkpoint that `latents` make."""
        folder = self._folder / name
        if name == CHECKPOINT and not folder.exists():
            export_runs(folder, [self.of("latents")])
        elif not folder.exists():
            self.train(name, folder)
        return folder

    def train(
        self,
        name: str,
        folder: Path,
        *changes: str,
        stop_at: int | None = None,
        resume: bool = False,
        workers: int = 0,
    ) -> None:
        """Trains in a folder of one's own."""
        tiny = TINY[name]
        behind = [f"{setting}={self.of(run)}" for setting, run in tiny.behind.items()]
        train_part(
            tiny.part,
            output=folder,
            changes=() if resume else [*LOOP, *tiny.changes, *behind, *changes],
            pace=Pace(
                workers=workers, log_every=1, save_every=2, sample_every=STEPS, stop_at=stop_at
            ),
            resume=resume,
        )


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    torch.set_num_threads(1)
    return TinyRuns(tmp_path_factory.mktemp("runs"))


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All that is saved in a folder as safetensors, by file and name."""
    return {
        f"{file.relative_to(folder)}: {name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.fixture(scope="session")
def assert_same_weights():
    def assert_same_weights(one: Path, other: Path) -> None:
        expected, found = weights_of(one), weights_of(other)
        assert expected
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, found[name]), name

    return assert_same_weights
