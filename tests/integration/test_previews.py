"""Previews over gRPC: the same pictures, few for who reads slowly, and like the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from carrara import AsyncCascade, Finished, Preview
from carrara.tensors import to_numpy
from carrara.v1 import generator_pb2, stage_pb2
from carrara.v1.generator_pb2_grpc import GeneratorServiceStub
from carrara_models.embedded import embedded_folder
from carrara_services.admission import happenings
from carrara_services.admission.mailbox import Mailbox
from integration.in_process import Served, encode, events, generate, served
from tiny_checkpoints import build_sd1

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "a large red circle above a small blue square on a white background"
DRAWN_LATENT = embedded_folder("drawn-latent")
# By itself gRPC takes megabytes ahead of a reader.
FEW_AHEAD = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def conditioning() -> stage_pb2.Conditioning:
    async with served("text-encoder", DRAWN_LATENT) as text_encoder:
        return (await encode(text_encoder, PROMPT, "")).conditioning


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def generator() -> AsyncIterator[Served]:
    async with served("generator", DRAWN_LATENT) as generator:
        yield generator


def job_of(
    conditioning: stage_pb2.Conditioning, seed: int, *, interval: int = 0, **arguments: Any
) -> stage_pb2.Job:
    return stage_pb2.Job(
        conditioning=conditioning,
        random_state=stage_pb2.RandomState(seed=seed),
        arguments=stage_pb2.Arguments(**{"num_inference_steps": 8, **arguments}),
        preview_interval_steps=interval,
    )


def call(stage: Served, job: stage_pb2.Job) -> Any:
    return stage.stub.Generate(generator_pb2.GenerateRequest(job=job))


def previews(happened: list[Any]) -> list[stage_pb2.Preview]:
    return [event for event in happened if isinstance(event, stage_pb2.Preview)]


def correlation(preview: np.ndarray, picture: Image.Image) -> float:
    small = picture.resize(preview.shape[1::-1], Image.Resampling.BOX)
    return float(np.corrcoef(preview.ravel(), np.asarray(small).ravel())[0, 1])


async def test_pictures_are_those_without_previews_whatever_shares_the_batch(
    generator: Served, conditioning: stage_pb2.Conditioning
):
    settings: list[dict[str, Any]] = [
        {},
        {"scheduler": "euler-ancestral"},
        {"scheduler": "ddim", "eta": 0.5},
        {"scheduler": "heun", "guidance_scale": 1},
        {"scheduler": "pndm", "guidance_rescale": 0.7},
    ]
    plain = [job_of(conditioning, seed, **each) for seed, each in enumerate(settings)]
    expected = [(await generate(generator, job)).sample for job in plain]
    watched = [
        job_of(conditioning, seed, interval=seed % 3, **each) for seed, each in enumerate(settings)
    ]
    happened = await asyncio.gather(*(events(call(generator, job)) for job in watched))
    assert [each[-1].sample for each in happened] == expected
    for seed, each in enumerate(happened):
        steps = [preview.step for preview in previews(each)]
        assert bool(steps) is bool(seed % 3)
        assert all(step % (seed % 3) == 0 for step in steps)
        for preview in previews(each):
            assert to_numpy(preview.image).shape == (16, 16, 3)


async def test_describe_tells_who_can_show_its_jobs(generator: Served, tmp_path: Path):
    assert (await generator.describe()).previews
    sd1 = build_sd1(tmp_path / "sd1")
    async with served("text-encoder", sd1) as text_encoder, served("decoder", sd1) as decoder:
        assert not (await text_encoder.describe()).previews
        assert not (await decoder.describe()).previews
        own = (await encode(text_encoder, "a circle", "")).conditioning
    async with served("generator", sd1) as blind:
        assert not (await blind.describe()).previews
        happened = await events(call(blind, job_of(own, 1, interval=1)))
    assert not previews(happened)
    assert happened[-1].HasField("sample"), "who cannot show its jobs runs them all the same"


async def test_a_reader_who_does_not_read_slows_nobody_and_fills_no_memory(
    generator: Served, conditioning: stage_pb2.Conditioning, monkeypatch: pytest.MonkeyPatch
):
    boxes: list[Mailbox] = []
    most = 0
    put = Mailbox.put

    def counting(box: Mailbox, happening: happenings.Happening) -> None:
        nonlocal most
        put(box, happening)
        boxes.append(box)
        unread = tuple(box._unread)
        most = max(most, sum(isinstance(each, happenings.Preview) for each in unread))

    monkeypatch.setattr(Mailbox, "put", counting)
    # Previews of 64 x 64 pixels, 12 KiB: more of them than this connection takes ahead.
    job = job_of(conditioning, 1, interval=1, num_inference_steps=40, height=256, width=256)
    async with grpc.aio.insecure_channel(generator.server.address, options=FEW_AHEAD) as channel:
        silent = call(Served(generator.server, channel, GeneratorServiceStub(channel)), job)
        await silent.wait_for_connection()
        beside = await generate(generator, job_of(conditioning, 2))
        async with asyncio.timeout(200):
            while (await generator.describe()).load.jobs_running:  # noqa: ASYNC110 - over gRPC
                await asyncio.sleep(0.05)
        assert beside.HasField("sample")
        assert len(set(map(id, boxes))) == 2
        assert most == 1
        happened = await events(silent)
    shown = [preview.step for preview in previews(happened)]
    assert shown[-1] == 40
    assert len(shown) < 40, "those that came while an older one waited took its place"
    assert happened[-1].HasField("sample")


async def test_a_resumed_job_goes_on_being_shown(conditioning: stage_pb2.Conditioning):
    job = job_of(conditioning, 3, interval=5, num_inference_steps=40)
    job.resumable = True
    async with served("generator", DRAWN_LATENT, drain_pause_seconds=0) as doomed:
        running = aiter(call(doomed, job))
        while (await anext(running)).event.progress.step < 12:
            pass
        rest = asyncio.ensure_future(events(running))
        ending = asyncio.ensure_future(doomed.server.drain())
        state = (await rest)[-1]
        await ending
    assert isinstance(state, stage_pb2.JobState), "it was suspended"
    async with served("generator", DRAWN_LATENT) as other:
        resumed = stage_pb2.Job(resume=state)
        resumed.MergeFrom(job)
        happened = await events(call(other, resumed))
        undisturbed = await events(call(other, job))
    wanted = [preview for preview in previews(undisturbed) if preview.step > state.step]
    assert [preview.step for preview in wanted][-1] == 40
    assert previews(happened) == wanted, "the same steps with the same bytes"
    assert happened[-1].sample == undisturbed[-1].sample


@pytest.mark.parametrize(
    ("checkpoint", "roles", "least"),
    [
        ("drawn-latent", {"generator"}, 0.9),
        ("drawn-unclip", {"generator"}, 0.85),
        ("drawn-pixel", {"generator", "decoder"}, 0.98),
    ],
)
async def test_the_last_preview_looks_like_the_picture(
    checkpoint: str, roles: set[str], least: float
):
    shown: dict[str, list[Preview]] = {}
    async with await AsyncCascade.embedded(checkpoint) as cascade:
        async for event in cascade.stream(PROMPT, seed=7, preview_interval_steps=1):
            if isinstance(event, Preview):
                shown.setdefault(event.role, []).append(event)
            if isinstance(event, Finished):
                result = event.result
        plain = await cascade.generate(PROMPT, seed=7)
    assert shown.keys() == roles
    assert result.warnings == plain.warnings
    picture = result.images[0].image
    assert picture.tobytes() == plain.images[0].image.tobytes()
    for role, pictures in shown.items():
        last = np.asarray(pictures[-1].image)
        assert max(last.shape) <= 128
        assert correlation(last, picture) > least, role
