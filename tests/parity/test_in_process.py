"""The three parts, loaded one by one, paint what `StableDiffusionPipeline` paints, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from carrara_models.checkpoints import open_checkpoint
from carrara_models.denoising.run import run_alone
from carrara_models.denoising.schedulers import SCHEDULERS
from carrara_models.errors import BadFieldError
from carrara_models.families import load_part
from carrara_models.parts import Decoder, Denoiser, DenoisingRequest, Sample, TextEncoder, Texts
from carrara_models.pixels import to_uint8
from oracle import paint_with_diffusers
from tiny_checkpoints import build_sd1, build_sd2

BUILDERS = {"sd1": build_sd1, "sd2": build_sd2}
PROMPT = "a large red circle above a small blue square"


@dataclass(frozen=True)
class Parts:
    folder: Path
    text_encoder: TextEncoder
    generator: Denoiser
    decoder: Decoder

    def request(
        self, prompt: str = PROMPT, *, seed: int, negative_prompt: str = "", **settings: Any
    ) -> DenoisingRequest:
        conditioning = dict(self.text_encoder.encode([Texts(prompt)])[0].tensors)
        if settings.get("guidance_scale", 7.5) > 1:
            texts = Texts(None, negative=True, negative_prompt=negative_prompt)
            negative = self.text_encoder.encode([texts])[0]
            conditioning |= negative.tensors
        return DenoisingRequest(conditioning, seed, **settings)

    def paint(self, prompt: str = PROMPT, **settings: Any) -> np.ndarray:
        sample = run_alone(self.generator, self.request(prompt, **settings))
        return to_uint8(self.decoder.decode([sample])[0])


@pytest.fixture(scope="module")
def parts_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)

    @cache
    def load(family: str) -> Parts:
        return load_parts(BUILDERS[family](tmp_path_factory.mktemp(family)))

    return load


def load_parts(folder: Path, *, dtype: torch.dtype = torch.float32) -> Parts:
    cpu = torch.device("cpu")
    return Parts(
        folder,
        *(
            load_part(open_checkpoint(folder, stage=role), device=cpu, dtype=dtype)
            for role in ("text-encoder", "generator", "decoder")
        ),
    )


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
@pytest.mark.parametrize("family", BUILDERS)
def test_picture_equals_the_pipelines_with_every_scheduler(
    parts_of: Any, family: str, scheduler: str | None, guidance_scale: float
) -> None:
    parts = parts_of(family)
    settings = {
        "seed": 2**32 + 11,
        "scheduler": scheduler,
        "guidance_scale": guidance_scale,
        "negative_prompt": "white background",
        "num_inference_steps": 4,
    }
    expected = paint_with_diffusers(parts.folder, PROMPT, **settings)
    np.testing.assert_array_equal(parts.paint(**settings), expected)


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 0, "height": 40, "width": 72},
        {"seed": 2**64 - 1, "height": 8, "width": 8},
        {"seed": 2**63, "num_inference_steps": 1},
        {"seed": 5, "guidance_scale": 30.0, "negative_prompt": "a blue circle"},
        {"seed": 6, "guidance_scale": 0.0},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_picture_equals_the_pipelines_at_the_edges_of_the_settings(
    parts_of: Any, family: str, settings: dict[str, Any]
) -> None:
    parts = parts_of(family)
    settings = {"num_inference_steps": 3} | settings
    expected = paint_with_diffusers(parts.folder, PROMPT, **settings)
    np.testing.assert_array_equal(parts.paint(**settings), expected)


@pytest.mark.parametrize("family", BUILDERS)
def test_settings_that_nobody_gave_are_the_pipelines(parts_of: Any, family: str) -> None:
    parts = parts_of(family)
    expected = paint_with_diffusers(parts.folder, PROMPT, seed=1)
    np.testing.assert_array_equal(parts.paint(seed=1), expected)


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("prompt", ["", "blue " * 100, "größer, ein Kreis ⭕ <|endoftext|> !"])
def test_picture_equals_the_pipelines_for_odd_prompts(
    parts_of: Any, family: str, prompt: str
) -> None:
    parts = parts_of(family)
    expected = paint_with_diffusers(parts.folder, prompt, seed=1, num_inference_steps=2)
    np.testing.assert_array_equal(parts.paint(prompt, seed=1, num_inference_steps=2), expected)


@pytest.mark.parametrize("family", BUILDERS)
def test_oracle_changes_with_seed_and_prompt(parts_of: Any, family: str) -> None:
    folder = parts_of(family).folder
    settings = {"num_inference_steps": 4, "guidance_scale": 4.5}
    picture = paint_with_diffusers(folder, PROMPT, seed=1, **settings)
    other_seed = paint_with_diffusers(folder, PROMPT, seed=2, **settings)
    other_prompt = paint_with_diffusers(folder, "white", seed=1, **settings)
    assert (picture != other_seed).mean() > 0.5
    assert (picture != other_prompt).mean() > 0.1


@pytest.mark.parametrize("steps", [1, 2, 3, 999, 1000])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("family", BUILDERS)
def test_a_job_starts_for_every_number_of_steps_that_the_scheduler_can_do(
    parts_of: Any, family: str, scheduler: str, steps: int
) -> None:
    """Where diffusers would fail in the middle of a job, the job does not start, and only there."""
    parts = parts_of(family)
    request = parts.request(
        seed=1, guidance_scale=1.0, scheduler=scheduler, num_inference_steps=steps
    )
    request = replace(request, height=8, width=8)
    beyond_training = {"ddpm", "ddim", "pndm", "dpm++2m", "unipc"}
    if steps == 1000 and scheduler in beyond_training:
        with pytest.raises(BadFieldError) as refusal:
            parts.generator.start(request)
        assert refusal.value.field == "num_inference_steps"
    elif steps <= 3:
        sample = run_alone(parts.generator, request)
        expected = paint_with_diffusers(
            parts.folder,
            PROMPT,
            seed=1,
            guidance_scale=1.0,
            scheduler=scheduler,
            num_inference_steps=steps,
            height=8,
            width=8,
            output_type="latent",
        )
        torch.testing.assert_close(sample.tensors["latents"], expected, rtol=0, atol=0)
    else:
        assert parts.generator.start(request).num_steps >= steps


def test_latents_equal_the_pipelines_in_bfloat16(parts_of: Any) -> None:
    folder = parts_of("sd1").folder
    parts = load_parts(folder, dtype=torch.bfloat16)
    request = parts.request(seed=3, num_inference_steps=3)
    latents = run_alone(parts.generator, request).tensors["latents"]
    expected = paint_with_diffusers(
        folder,
        PROMPT,
        seed=3,
        num_inference_steps=3,
        dtype=torch.bfloat16,
        output_type="latent",
    )
    assert latents.dtype == torch.bfloat16
    torch.testing.assert_close(latents, expected, rtol=0, atol=0)


def unequal_requests(parts: Parts) -> list[DenoisingRequest]:
    names = list(SCHEDULERS)
    return [
        parts.request(
            PROMPT if i % 2 else f"{i} small circle",
            seed=i << 30,
            negative_prompt="red" * (i % 3),
            guidance_scale=1.0 if i % 3 == 0 else 1.5 + i,
            scheduler=names[i % len(names)],
            num_inference_steps=1 + i % 6,
            height=parts.generator.defaults.height + 8 * (i % 2),
        )
        for i in range(16)
    ]


def run_together(generator: Denoiser, requests: Sequence[DenoisingRequest]) -> list[Sample]:
    """Three requests join at every tick, and each leaves when it is done."""
    waiting, running, done = dict(enumerate(requests)), {}, {}
    largest = 0
    while waiting or running:
        for i in list(waiting)[:3]:
            running[i] = generator.start(waiting.pop(i))
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, job in running.items():
            groups.setdefault(job.group, []).append(i)
        for members in groups.values():
            largest = max(largest, len(members))
            outputs = generator.predict([running[i] for i in members])
            assert not any(generator.advance([running[i] for i in members], outputs))
        for i in [i for i, job in running.items() if job.step == job.num_steps]:
            done[i] = generator.finish(running.pop(i))
    assert largest >= 4, "hardly anything shared a batch"
    return [done[i] for i in range(len(requests))]


def assert_equal_samples(together: Sequence[Sample], alone: Sequence[Sample]) -> None:
    for batched, single in zip(together, alone, strict=True):
        torch.testing.assert_close(
            batched.tensors["latents"], single.tensors["latents"], rtol=0, atol=0
        )
        assert torch.equal(batched.random_state, single.random_state)


@pytest.mark.parametrize("family", BUILDERS)
def test_sixteen_unequal_jobs_in_one_batch_equal_their_solo_runs(
    parts_of: Any, family: str
) -> None:
    parts = parts_of(family)
    requests = unequal_requests(parts)
    together = run_together(parts.generator, requests)
    alone = [run_alone(parts.generator, request) for request in requests]
    assert_equal_samples(together, alone)
    assert not torch.equal(alone[1].tensors["latents"], alone[3].tensors["latents"])


@pytest.mark.parametrize(
    "changes",
    [
        {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
        {"mid_block_type": None},
        {"only_cross_attention": True},
        {"resnet_time_scale_shift": "scale_shift"},
        {"encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj", "cross_attention_dim": 24},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_batches_are_exact_for_other_unets(
    parts_of: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = copytree(parts_of("sd1").folder, tmp_path / "changed")
    config = json.loads((folder / "unet" / "config.json").read_text())
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(config | changes)
    unet.save_pretrained(folder / "unet")
    parts = load_parts(folder)
    requests = unequal_requests(parts)
    alone = [run_alone(parts.generator, request) for request in requests]
    assert_equal_samples(run_together(parts.generator, requests), alone)

    expected = paint_with_diffusers(folder, PROMPT, seed=1, num_inference_steps=2)
    np.testing.assert_array_equal(parts.paint(seed=1, num_inference_steps=2), expected)
