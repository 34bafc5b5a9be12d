"""Three processes on pruned folders paint what `StableDiffusionPipeline` paints, bit for bit.

All sides compute with one thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carrara import AsyncCascade, Cascade
from carrara_models.checkpoints import open_checkpoint, resolve
from carrara_models.denoising.schedulers import SCHEDULERS
from carrara_models.pruning import prune
from integration.processes import cascade_processes
from oracle import paint_with_diffusers
from tiny_checkpoints import build_sd1, build_sd2

PROMPT = "a large red circle above a small blue square on a white background"
ROLES = ("text-encoder", "generator", "decoder")


@dataclass(frozen=True)
class Served:
    """A checkpoint, and its three stages' addresses."""

    folder: Path
    addresses: dict[str, list[str]]
    cascade: Cascade

    def paint(self, prompt: str = PROMPT, **settings: Any) -> np.ndarray:
        return np.asarray(self.cascade.generate(prompt, **settings).images[0].image)


def write_tiny(family: str, folder: Path) -> Path:
    return {"sd1": build_sd1, "sd2": build_sd2}[family](folder)


@pytest.fixture(scope="module", params=["sd1", "sd2", "drawn-latent"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    torch.set_num_threads(1)
    name = request.param
    folder = (
        resolve(name) if name == "drawn-latent" else write_tiny(name, tmp_path_factory.mktemp(name))
    )
    pruned = {
        role: prune(
            open_checkpoint(folder, stage=role), output=tmp_path_factory.mktemp("pruned") / role
        )
        for role in ROLES
    }
    with cascade_processes(
        text_encoder=pruned["text-encoder"],
        generator=pruned["generator"],
        decoder=pruned["decoder"],
    ) as stages:
        addresses = {
            "text_encoders": [stages.text_encoder.address],
            "generators": [stages.generator.address],
            "decoders": [stages.decoder.address],
        }
        with Cascade.connect(**addresses) as cascade:
            yield Served(folder, addresses, cascade)


def test_each_process_holds_only_its_own_components(served: Served) -> None:
    loaded = {
        role: [component.name for component in description.components]
        for role, _, description in served.cascade.descriptions
    }
    assert loaded == {
        "text-encoder": ["tokenizer", "text_encoder"],
        "generator": ["unet", "scheduler"],
        "decoder": ["vae"],
    }


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
def test_served_picture_equals_the_pipelines(
    served: Served, scheduler: str | None, guidance_scale: float
) -> None:
    settings: dict[str, Any] = {
        "seed": 2**32 + 11,
        "scheduler": scheduler,
        "guidance_scale": guidance_scale,
        "negative_prompt": "a small blue square",
        "num_inference_steps": 4,
    }
    expected = paint_with_diffusers(served.folder, PROMPT, **settings)
    np.testing.assert_array_equal(served.paint(**settings), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 3, "height": 32, "width": 64},
        {"seed": 2**64 - 1, "height": 64, "width": 32},
        {"seed": 2**40, "negative_prompt": "red", "guidance_scale": 30.0},
    ],
    ids=["wide", "high", "strong"],
)
def test_served_picture_equals_the_pipelines_at_other_sizes(
    served: Served, settings: dict[str, Any]
) -> None:
    settings = {"num_inference_steps": 3, "guidance_scale": 7.5} | settings
    expected = paint_with_diffusers(served.folder, PROMPT, **settings)
    np.testing.assert_array_equal(served.paint(**settings), expected)


def test_the_pipelines_picture_changes_with_seed_and_prompt(served: Served) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.5}
    picture = paint_with_diffusers(served.folder, PROMPT, seed=1, **settings)
    for other in (
        paint_with_diffusers(served.folder, PROMPT, seed=2, **settings),
        paint_with_diffusers(served.folder, "on the white", seed=1, **settings),
    ):
        assert (picture != other).mean() > 0.01


async def test_sixteen_concurrent_unequal_requests_equal_their_solo_pictures(
    served: Served,
) -> None:
    names = list(SCHEDULERS)
    requests: list[dict[str, Any]] = [
        {
            "prompt": PROMPT if i % 2 else "a small blue square",
            "negative_prompt": "red" if i % 4 == 1 else None,
            "seed": i << 30,
            "scheduler": names[i % len(names)],
            "guidance_scale": 1.0 if i % 3 == 0 else 1.5 + i,
            "num_inference_steps": 2 + i % 5,
            "width": 64 if i % 5 else 32,
        }
        for i in range(16)
    ]
    async with await AsyncCascade.connect(**served.addresses) as cascade:
        together = await asyncio.gather(*(cascade.generate(**request) for request in requests))
        alone = [await cascade.generate(**request) for request in requests]
    generator = [result.usage[1] for result in together]
    # Proof that they shared the batch: each then took longer than its own part of the compute.
    assert sum(usage.running_ms for usage in generator) > 2 * sum(
        usage.compute_ms for usage in generator
    )
    for both, single in zip(together, alone, strict=True):
        np.testing.assert_array_equal(
            np.asarray(both.images[0].image), np.asarray(single.images[0].image)
        )
