from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import toy_stages
from toy_stages import Fault, ToyCascade, fault_details, serving, serving_all

from carrara import (
    AsyncCascade,
    CarraraError,
    CascadeClosedError,
    ContractError,
    DeadlineError,
    Finished,
    InternalStageError,
    InvalidArgumentError,
    NotAStageError,
    Preview,
    Progress,
    Queued,
    ResourceExhaustedError,
    StageUnavailableError,
)
from carrara.aio import MAX_IMAGES_AT_ONCE
from carrara.exceptions import BY_STATUS
from carrara.manifest import Manifest, ManifestStage, write_manifest
from carrara.tensors import from_numpy
from carrara.v1 import stage_pb2, text_encoder_pb2


@pytest.fixture
async def toys() -> AsyncIterator[ToyCascade]:
    async with serving_all() as toys:
        yield toys


@pytest.fixture
async def cascade(toys: ToyCascade) -> AsyncIterator[AsyncCascade]:
    async with await AsyncCascade.connect(**toys.addresses) as cascade:
        yield cascade


async def paint(cascade: AsyncCascade, prompt: str = "a circle", **settings: object) -> bytes:
    result = await cascade.generate(prompt, **({"seed": 7} | settings))  # type: ignore[arg-type]
    return b"".join(image.image.tobytes() for image in result.images)


async def test_the_picture_follows_everything_that_was_asked(cascade: AsyncCascade) -> None:
    variants = [
        {},
        {"prompt": "a square"},
        {"seed": 8},
        {"seed": 7 + 2**63},
        {"negative_prompt": "a cat"},
        {"guidance_scale": 1},
        {"guidance_scale": 7},
        {"num_inference_steps": 2},
        {"scheduler": "euler"},
        {"height": 24},
        {"width": 24},
    ]
    pictures = [await paint(cascade, **variant) for variant in variants]  # type: ignore[arg-type]
    assert len(set(pictures)) == len(variants)
    assert await paint(cascade) == pictures[0]


async def test_the_result_tells_what_was_resolved_and_spent(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    result = await cascade.generate("a circle", seed=7, num_images=2, height=24, width=8)
    assert [image.seed for image in result.images] == [7, 8]
    assert [image.image.size for image in result.images] == [(8, 24), (8, 24)]
    assert (result.height, result.width) == (24, 8)
    assert (result.num_inference_steps, result.guidance_scale, result.scheduler) == (3, 5, "ddim")
    assert result.numerics == "exact"
    assert result.total_ms > 0
    assert [usage.role for usage in result.usage] == ["text-encoder", "generator", "decoder"]
    assert [usage.address for usage in result.usage] == [
        toys.text_encoder.address,
        toys.generator.address,
        toys.decoder.address,
    ]
    assert [usage.fingerprint[0] for usage in result.usage] == ["1", "2", "3"]
    assert [usage.compute_ms for usage in result.usage] == [2.5, 5, 5]


async def test_the_prompt_is_encoded_once_and_each_image_is_a_job_of_its_own(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    await cascade.generate("a circle", seed=2**64 - 1, num_images=3)
    assert len(toys.text_encoder.requests) == 1
    jobs = [request.job for request in toys.generator.requests]  # type: ignore[attr-defined]
    assert sorted(job.random_state.seed for job in jobs) == [0, 1, 2**64 - 1]
    assert len(toys.decoder.requests) == 3
    assert len({*toys.text_encoder.request_ids, *toys.generator.request_ids}) == 1


async def test_a_job_names_the_weights_and_the_next_stage_s_contract(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    await cascade.generate("a circle")
    (painted,), (decoded,) = toys.generator.requests, toys.decoder.requests
    assert painted.job.stage_fingerprint == "2" * 64  # type: ignore[attr-defined]
    assert painted.job.consumer == toys.decoder.description.consumes[0].contract  # type: ignore[attr-defined]
    assert decoded.job.stage_fingerprint == "3" * 64  # type: ignore[attr-defined]
    assert not decoded.job.HasField("consumer")  # type: ignore[attr-defined]


async def test_the_random_state_travels_with_the_sample_and_the_seed_only_once(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    await cascade.generate("a circle", seed=7)
    (decoded,) = toys.decoder.requests
    assert not decoded.job.HasField("random_state")  # type: ignore[attr-defined]
    assert decoded.job.sample.random_state.torch_cpu.startswith(b"state after")  # type: ignore[attr-defined]


async def test_payloads_are_forwarded_unopened(
    cascade: AsyncCascade, toys: ToyCascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A sample with a tensor type of a newer version, which this client could not read.
    unreadable = from_numpy(np.zeros(3, np.float32))
    unreadable.data_type = 99  # type: ignore[assignment]
    latents = toy_stages._latents

    def with_unreadable(toy: toy_stages.ToyStage, job: stage_pb2.Job) -> stage_pb2.Sample:
        sample = latents(toy, job)
        sample.tensors["of_a_newer_version"].CopyFrom(unreadable)
        return sample

    monkeypatch.setattr(toy_stages, "_latents", with_unreadable)
    await cascade.generate("a circle")
    (decoded,) = toys.decoder.requests
    assert decoded.job.sample.tensors["of_a_newer_version"] == unreadable  # type: ignore[attr-defined]


async def test_the_negative_half_is_asked_for_exactly_with_guidance(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    await cascade.generate("a circle", negative_prompt="a cat")
    await cascade.generate("a circle")
    result = await cascade.generate("a circle", guidance_scale=1, negative_prompt="a cat")
    guided, absent, off = toys.text_encoder.requests
    assert (guided.guidance, guided.negative_prompt) == (True, "a cat")  # type: ignore[attr-defined]
    assert (absent.guidance, absent.HasField("negative_prompt")) == (True, False)  # type: ignore[attr-defined]
    # The text goes along: Kandinsky's prior paints of it even then.
    assert (off.guidance, off.negative_prompt) == (False, "a cat")  # type: ignore[attr-defined]
    assert [warning.code for warning in result.warnings] == ["NEGATIVE_PROMPT_UNUSED"]


async def test_warnings_of_the_stages_are_told_once(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    cut = stage_pb2.Warning(
        code=stage_pb2.WARNING_CODE_PROMPT_TRUNCATED,
        message="the prompt was cut after 75 tokens: 'in the style of'",
        field="prompt",
        detail="in the style of",
    )
    toys.text_encoder.warnings = [cut]
    toys.generator.warnings = [stage_pb2.Warning(code=77, message="of a newer stage")]  # type: ignore[arg-type]
    result = await cascade.generate("a circle", num_images=3)
    assert [warning.code for warning in result.warnings] == ["PROMPT_TRUNCATED", "77"]
    assert result.warnings[0].detail == "in the style of"
    assert result.warnings[0].field == "prompt"


async def test_a_stream_tells_every_stage_s_steps_and_then_the_result(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    stream = cascade.stream("a circle", seed=7, num_images=2, preview_interval_steps=3)
    events = [event async for event in stream]
    assert isinstance(events[-1], Finished)
    assert [image.seed for image in events[-1].result.images] == [7, 8]
    assert not any(isinstance(event, Finished) for event in events[:-1])
    for image_index in (0, 1):
        mine = [event for event in events[:-1] if event.image_index == image_index]  # type: ignore[union-attr]
        steps = [
            (e.role, e.stage_index, e.step, e.total_steps) for e in mine if isinstance(e, Progress)
        ]
        assert steps == [
            ("generator", 1, 1, 3),
            ("generator", 1, 2, 3),
            ("generator", 1, 3, 3),
            ("decoder", 2, 1, 1),
        ]
        assert [e.role for e in mine if isinstance(e, Queued)] == ["generator", "decoder"]
        (preview,) = [e for e in mine if isinstance(e, Preview)]
        assert preview.image.size == (2, 2)
    assert events[0] == Progress("text-encoder", 0, 1, 1, None)


async def test_images_at_once_are_bounded(cascade: AsyncCascade, toys: ToyCascade) -> None:
    toys.generator.step_seconds = 0.02
    await cascade.generate("a circle", num_images=MAX_IMAGES_AT_ONCE + 4)
    assert toys.generator.most_at_once == MAX_IMAGES_AT_ONCE


async def test_bad_settings_are_refused_before_any_compute(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    with pytest.raises(InvalidArgumentError, match="height: 12"):
        await cascade.generate("a circle", height=12)
    for timeout_seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidArgumentError, match="timeout_seconds"):
            await cascade.generate("a circle", timeout_seconds=timeout_seconds)
    assert not toys.text_encoder.requests


async def test_stages_that_do_not_fit_are_refused_before_any_compute() -> None:
    async with serving_all(toy_stages.decoder(vae="c" * 64)) as toys:
        with pytest.raises(ContractError) as caught:
            await AsyncCascade.connect(**toys.addresses)
        assert f"generator {toys.generator.address} produces latents" in str(caught.value)
        assert f"decoder {toys.decoder.address} consumes" in str(caught.value)
        assert not toys.text_encoder.requests


async def test_an_address_that_is_no_stage_is_told_from_a_dead_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("carrara.connections.CONNECT_TIMEOUT_SECONDS", 0.3)
    async with serving(toy_stages.generator(), describe=False) as other:
        with pytest.raises(NotAStageError, match=f"{other.address}: this is no Carrara generator"):
            await AsyncCascade.connect(generators=[other.address])
    with pytest.raises(StageUnavailableError, match="no stage answered within") as caught:
        await AsyncCascade.connect(generators=[other.address])
    assert (caught.value.role, caught.value.address) == ("generator", other.address)


async def test_a_stage_given_in_another_s_place_is_told_as_such_at_once(toys: ToyCascade) -> None:
    swapped = toys.addresses | {"generators": [toys.decoder.address]}
    begin = time.monotonic()
    with pytest.raises(ContractError, match="was given as generator, but it is a decoder"):
        await AsyncCascade.connect(**swapped)
    assert time.monotonic() - begin < 5, "although its health knows of no generator"


async def test_a_stage_that_does_not_serve_is_refused_at_connect(
    toys: ToyCascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carrara.connections.CONNECT_TIMEOUT_SECONDS", 1.0)
    toys.generator.serving = False
    with pytest.raises(StageUnavailableError, match="NOT_SERVING") as caught:
        await AsyncCascade.connect(**toys.addresses)
    assert (caught.value.role, caught.value.address) == ("generator", toys.generator.address)


async def test_a_server_without_health_is_served_from_all_the_same(toys: ToyCascade) -> None:
    async with serving(toy_stages.generator(), health=False) as generator:
        addresses = toys.addresses | {"generators": [generator.address]}
        async with await AsyncCascade.connect(**addresses) as cascade:
            await cascade.generate("a circle")
    assert len(generator.requests) == 1


async def test_connect_waits_for_a_stage_that_is_about_to_start(toys: ToyCascade) -> None:
    async with serving(toy_stages.decoder()) as late:
        address = late.address
    connecting = asyncio.create_task(
        AsyncCascade.connect(**(toys.addresses | {"decoders": [address]}))
    )
    await asyncio.sleep(0.3)
    assert not connecting.done()
    async with serving(toy_stages.decoder(), bind=address), await connecting as cascade:
        await cascade.generate("a circle")


@pytest.mark.parametrize("addresses", ["localhost:1", ["localhost"], []])
async def test_addresses_that_cannot_be_meant_are_refused(addresses: list[str]) -> None:
    with pytest.raises(InvalidArgumentError, match="allowed: "):
        await AsyncCascade.connect(generators=addresses)


@pytest.mark.parametrize(
    "code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK], ids=lambda c: c.name
)
@pytest.mark.parametrize("role", ["text_encoder", "generator", "decoder"])
async def test_every_status_of_every_stage_becomes_its_exception(
    cascade: AsyncCascade, toys: ToyCascade, code: grpc.StatusCode, role: str
) -> None:
    toy = getattr(toys, role)
    toy.faults = [Fault(code)] * 30
    with pytest.raises(CarraraError) as caught:
        await cascade.generate("a circle", timeout_seconds=20)
    assert len(toy.faults) < 30, "the fault took place"
    assert type(caught.value) is BY_STATUS[code]
    assert (caught.value.role, caught.value.address) == (toy.role, toy.address)
    assert caught.value.request_id == toy.request_ids[0]


async def test_a_full_queue_tells_when_to_come_back(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    details = fault_details("QUEUE_FULL", retry_after_seconds=3)
    toys.generator.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, details=details)]
    with pytest.raises(ResourceExhaustedError) as caught:
        await cascade.generate("a circle")
    assert caught.value.retry_after_seconds == 3
    assert len(toys.generator.requests) == 1, "a full queue is not knocked at again"


@pytest.mark.parametrize("after_step", [0, 2])
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_what_is_safe_to_replay_is_replayed(
    cascade: AsyncCascade, toys: ToyCascade, code: grpc.StatusCode, after_step: int
) -> None:
    undisturbed = await paint(cascade)
    toys.generator.faults = [Fault(code, after_step=after_step)] * 2
    assert await paint(cascade) == undisturbed
    assert not toys.generator.faults, "both faults took place"


async def test_the_calls_tell_where_the_time_went(cascade: AsyncCascade, toys: ToyCascade) -> None:
    toys.generator.step_seconds = toys.decoder.step_seconds = 0.05
    toys.decoder.faults = [Fault(grpc.StatusCode.UNAVAILABLE)]
    result = await cascade.generate("a circle", num_inference_steps=4)
    encoding, generating, decoding = (usage.call_ms for usage in result.usage)
    assert generating >= 4 * 50
    assert decoding >= 50 + 80, "the lost attempt and the pause after it count"
    assert encoding + generating + decoding <= result.total_ms
    assert encoding + generating + decoding >= 0.5 * result.total_ms


async def test_attempts_are_told_per_stage_replays_included(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    undisturbed = await cascade.generate("a circle", num_images=2)
    assert [usage.attempts for usage in undisturbed.usage] == [1, 2, 2]
    toys.text_encoder.faults = [Fault(grpc.StatusCode.UNAVAILABLE)]
    toys.generator.faults = [Fault(grpc.StatusCode.UNAVAILABLE, after_step=1)] * 2
    disturbed = await cascade.generate("a circle", num_images=2)
    assert not toys.text_encoder.faults
    assert not toys.generator.faults
    assert [usage.attempts for usage in disturbed.usage] == [2, 4, 2]
    calls = [len(toy.requests) for toy in (toys.text_encoder, toys.generator, toys.decoder)]
    assert calls == [1 + 2, 2 + 4, 2 + 2], "nobody else repeats calls"


async def test_a_fault_of_one_image_ends_the_others(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    toys.generator.step_seconds = 0.1
    toys.generator.faults = [Fault(grpc.StatusCode.INTERNAL, after_step=1)]
    begin = time.monotonic()
    with pytest.raises(InternalStageError):
        await cascade.generate("a circle", num_images=4, num_inference_steps=100)
    assert time.monotonic() - begin < 2
    await until(lambda: toys.generator.cancelled == 3)
    assert toys.generator.running == 0


async def test_the_deadline_is_one_for_all_stages_and_says_where_it_passed(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    toys.generator.step_seconds = 0.1
    with pytest.raises(DeadlineError, match=r"generator .* after step \d") as caught:
        await cascade.generate("a circle", num_inference_steps=50, timeout_seconds=0.5)
    assert caught.value.step is not None
    assert 1 <= caught.value.step <= 5
    (first,), (second,) = toys.text_encoder.remaining_seconds, toys.generator.remaining_seconds
    assert second < first < 0.6


async def test_a_stage_that_dies_for_good_is_reported_well_before_the_deadline(
    toys: ToyCascade,
) -> None:
    generator = toy_stages.generator()
    generator.step_seconds = 0.05
    async with serving(generator) as doomed:
        cascade = await AsyncCascade.connect(**(toys.addresses | {"generators": [doomed.address]}))
        painting = asyncio.create_task(cascade.generate("a circle", num_inference_steps=100))
        await generator.started.wait()
    begin = time.monotonic()
    with pytest.raises(StageUnavailableError) as caught:
        await painting
    assert time.monotonic() - begin < 5
    assert (caught.value.role, caught.value.address) == ("generator", doomed.address)
    assert doomed.address in str(caught.value)
    await cascade.aclose()


async def until(condition: object, *, seconds: float = 5) -> None:
    begin = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - begin < seconds, "it did not happen"
        await asyncio.sleep(0.01)


async def test_cancelling_the_task_cancels_the_running_jobs(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    toys.generator.step_seconds = 0.1
    painting = asyncio.create_task(
        cascade.generate("a circle", num_images=2, num_inference_steps=100)
    )
    await until(lambda: toys.generator.running == 2)
    painting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await painting
    await until(lambda: toys.generator.cancelled == 2)


async def test_closing_the_iterator_early_cancels_the_running_job(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    toys.generator.step_seconds = 0.1
    events = cascade.stream("a circle", num_inference_steps=100)
    async for event in events:
        if isinstance(event, Progress) and event.role == "generator":
            break
    assert toys.generator.running == 1
    await events.aclose()
    await until(lambda: toys.generator.cancelled == 1)
    assert await paint(cascade, num_inference_steps=1), "the cascade lives on"


async def test_leaving_the_block_cancels_the_running_jobs(toys: ToyCascade) -> None:
    toys.generator.step_seconds = 0.1
    async with await AsyncCascade.connect(**toys.addresses) as cascade:
        painting = asyncio.create_task(cascade.generate("a circle", num_inference_steps=100))
        await toys.generator.started.wait()
    with pytest.raises(CascadeClosedError, match="while it painted"):
        await painting
    await until(lambda: toys.generator.cancelled == 1)
    with pytest.raises(CascadeClosedError, match="has been closed"):
        await cascade.generate("a circle")


@pytest.mark.parametrize(
    "image",
    [
        stage_pb2.Sample(),
        stage_pb2.Sample(tensors={"image": from_numpy(np.zeros((4, 4, 4), np.uint8))}),
        stage_pb2.Sample(tensors={"image": from_numpy(np.zeros((4, 4, 3), np.float32))}),
        stage_pb2.Sample(tensors={"image": from_numpy(np.zeros((0, 4, 3), np.uint8))}),
    ],
    ids=["missing", "four channels", "float32", "empty"],
)
async def test_a_picture_that_cannot_be_read_names_the_decoder(
    cascade: AsyncCascade,
    toys: ToyCascade,
    image: stage_pb2.Sample,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toy_stages, "_image", lambda toy, job: image)
    with pytest.raises(InternalStageError, match="picture cannot be read") as caught:
        await cascade.generate("a circle")
    assert caught.value.address == toys.decoder.address


async def test_a_stream_that_ends_without_a_result_is_an_error(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    toys.generator.send_result = False
    with pytest.raises(InternalStageError, match="without a result") as caught:
        await cascade.generate("a circle")
    assert caught.value.address == toys.generator.address


async def test_requests_run_side_by_side(cascade: AsyncCascade, toys: ToyCascade) -> None:
    alone = [await paint(cascade, prompt) for prompt in ("one", "two", "three")]
    together = await asyncio.gather(*(paint(cascade, prompt) for prompt in ("one", "two", "three")))
    assert together == alone


async def asked(toy: toy_stages.ToyStage, **settings: object) -> text_encoder_pb2.EncodeRequest:
    """What the text encoder of a cascade with this generator is asked."""
    async with (
        serving_all(toy) as toys,
        await AsyncCascade.connect(**toys.addresses) as cascade,
    ):
        await cascade.generate("a circle", **settings)  # type: ignore[arg-type]
    (request,) = toys.text_encoder.requests
    assert isinstance(request, text_encoder_pb2.EncodeRequest)
    return request


async def test_an_absent_and_an_empty_negative_prompt_differ() -> None:
    absent = await asked(toy_stages.generator())
    empty = await asked(toy_stages.generator(), negative_prompt="")
    assert absent.guidance
    assert empty.guidance
    assert not absent.HasField("negative_prompt")
    assert empty.HasField("negative_prompt")


async def test_where_guidance_is_an_input_only_the_true_scale_needs_the_negative_half() -> None:
    def flux() -> toy_stages.ToyStage:
        toy = toy_stages.generator()
        toy.description.arguments.add(
            name="true_cfg_scale", minimum=0, maximum=30, default_number=1
        )
        return toy

    assert not (await asked(flux(), guidance_scale=9.0)).guidance
    assert not (await asked(flux(), true_cfg_scale=4.0)).guidance, "there is no negative prompt"
    assert not (await asked(flux(), negative_prompt="blue")).guidance
    assert (await asked(flux(), negative_prompt="blue", true_cfg_scale=4.0)).guidance


async def test_settings_of_siblings_reach_them_and_stand_in_the_result() -> None:
    larger = toy_stages.decoder()
    larger.description.stage = "super-res"
    larger.description.arguments.add(name="noise_level", minimum=0, maximum=999, default_number=250)
    async with (
        serving_all(larger) as toys,
        await AsyncCascade.connect(**toys.addresses) as cascade,
    ):
        assert {"super_res_noise_level", "guidance_scale", "seed"} <= set(cascade.settings)
        assert "prior_guidance_scale" not in cascade.settings
        results = [
            await cascade.generate("a circle", seed=1, **settings)  # type: ignore[arg-type]
            for settings in ({}, {"noise_level": 3}, {"super_res_noise_level": 4})
        ]
        with pytest.raises(InvalidArgumentError, match="super_res_noise_level: 1000"):
            await cascade.generate("a circle", super_res_noise_level=1000)
        with pytest.raises(InvalidArgumentError, match=r"prior_guidance_scale: .*num_inference"):
            await cascade.generate("a circle", prior_guidance_scale=3.0)
    assert [result.settings["super_res_noise_level"] for result in results] == [250, 3, 4]
    assert results[1].images[0].settings["super_res_noise_level"] == "3"
    jobs = [request.job.arguments for request in toys.decoder.requests]  # type: ignore[attr-defined]
    assert [job.noise_level if job.HasField("noise_level") else None for job in jobs] == [
        None,
        3,
        4,
    ]
    assert results[0].usage[2].stage == "super-res"


async def test_a_setting_that_several_siblings_take_needs_their_prefix() -> None:
    first, second = toy_stages.generator(), toy_stages.decoder()
    for toy, name in ((first, "prior"), (second, "upscaler")):
        toy.description.stage = name
        toy.description.arguments.add(name="eta", minimum=0, maximum=1)
    async with (
        serving_all(first, second) as toys,
        await AsyncCascade.connect(**toys.addresses) as cascade,
    ):
        with pytest.raises(InvalidArgumentError, match="prior_eta or upscaler_eta"):
            await cascade.generate("a circle", eta=0.5)


async def test_a_setting_that_nobody_knows_is_refused_with_those_there_are(
    cascade: AsyncCascade,
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"steps: 3 .*num_inference_steps"):
        await cascade.generate("a circle", steps=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("prompt_2", ["a square", 7])
async def test_a_text_that_no_encoder_takes_is_refused(
    cascade: AsyncCascade, prompt_2: object
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"prompt_2: .*negative_prompt, prompt"):
        await cascade.generate("a circle", prompt_2=prompt_2)  # type: ignore[arg-type]


async def test_a_manifest_connects_to_the_stages_that_it_names(
    toys: ToyCascade, tmp_path: Path
) -> None:
    unverified = stage_pb2.Warning(code=stage_pb2.WARNING_CODE_CONTRACT_UNVERIFIED, message="?")
    toys.generator.warnings = [unverified]
    stages = [
        ManifestStage(
            role=toy.role,
            stage=toy.role,
            address=toy.address,
            fingerprint=toy.description.fingerprint,
        )
        for toy in (toys.decoder, toys.generator, toys.text_encoder)
    ]
    file = tmp_path / "cascade.toml"
    file.write_text(write_manifest(Manifest(tuple(stages))))
    async with await AsyncCascade.load(file) as cascade:
        result = await cascade.generate("a circle", seed=7)
    assert [usage.address for usage in result.usage] == [
        toys.text_encoder.address,
        toys.generator.address,
        toys.decoder.address,
    ]
    assert result.warnings == (), "the manifest says that they belong together"

    file.write_text(write_manifest(Manifest((replace(stages[0], fingerprint=None), *stages[1:]))))
    async with await AsyncCascade.load(file) as cascade:
        result = await cascade.generate("a circle", seed=7)
    assert [warning.code for warning in result.warnings] == ["CONTRACT_UNVERIFIED"]

    file.write_text(write_manifest(Manifest((replace(stages[0], fingerprint="9" * 64), *stages))))
    with pytest.raises(ContractError):
        await AsyncCascade.load(file)


async def test_an_unused_negative_prompt_is_told_with_the_scale_that_leaves_it_so() -> None:
    toy = toy_stages.generator()
    toy.description.arguments.add(name="true_cfg_scale", minimum=0, maximum=30, default_number=1)
    async with (
        serving_all(toy) as toys,
        await AsyncCascade.connect(**toys.addresses) as cascade,
    ):
        result = await cascade.generate("a circle", negative_prompt="blue")
    (warning,) = result.warnings
    assert warning.code == "NEGATIVE_PROMPT_UNUSED"
    assert warning.message.endswith("guidance is off at a true_cfg_scale of 1")


async def test_a_setting_of_none_is_one_that_was_not_given(cascade: AsyncCascade) -> None:
    nothing = dict.fromkeys(("timeout_seconds", "seed", "num_images", "eta", "prompt_2"))
    result = await cascade.generate("a circle", **nothing)  # type: ignore[arg-type]
    assert result.num_inference_steps == 3


async def test_previews_come_from_the_stages_that_can_show_their_jobs(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    stream = cascade.stream("a circle", preview_interval_steps=2, num_inference_steps=4)
    events = [event async for event in stream]
    shown = [(e.role, e.stage_index, e.step) for e in events if isinstance(e, Preview)]
    assert shown == [("generator", 1, 2), ("generator", 1, 4)]
    generator, decoder = (stage.requests[-1].job for stage in (toys.generator, toys.decoder))  # type: ignore[attr-defined]
    assert generator.preview_interval_steps == 2
    assert decoder.preview_interval_steps == 0, "who does not know the word is not told it"
    assert events[-1].result.warnings == ()  # type: ignore[union-attr]


async def test_a_cascade_without_previews_says_so_and_paints(toys: ToyCascade) -> None:
    toys.generator.description.previews = False
    async with await AsyncCascade.connect(**toys.addresses) as cascade:
        result = await cascade.generate("a circle", preview_interval_steps=1)
        (warning,) = result.warnings
        assert (warning.code, warning.field) == ("PREVIEWS_UNAVAILABLE", "preview_interval_steps")
        assert "carrara train previews" in warning.message
        assert not (await cascade.generate("a circle")).warnings
    assert toys.generator.requests[0].job.preview_interval_steps == 0  # type: ignore[attr-defined]


async def test_a_caller_who_does_not_look_holds_one_preview_of_each_image(
    cascade: AsyncCascade, toys: ToyCascade
) -> None:
    stream = cascade.stream(
        "a circle", num_images=2, num_inference_steps=300, preview_interval_steps=1
    )
    await anext(stream)
    async with asyncio.timeout(30):
        while toys.decoder.requests == [] or toys.decoder.running:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    shown = [(e.image_index, e.step) async for e in stream if isinstance(e, Preview)]
    assert sorted(shown) == [(0, 300), (1, 300)]


@pytest.mark.parametrize("interval", [-1, 1001, 1.5, True, "often"])
async def test_an_interval_that_is_none_is_refused_before_any_compute(
    cascade: AsyncCascade, toys: ToyCascade, interval: Any
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"preview_interval_steps: .*1 to 1000, or 0"):
        await cascade.generate("a circle", preview_interval_steps=interval)
    assert not toys.text_encoder.requests
