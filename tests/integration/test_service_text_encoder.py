"""The text encoder as a service: absent and empty texts, limits, warnings, nothing done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from carrara.v1 import stage_pb2, text_encoder_pb2
from carrara_services.serving.limits import MAX_PROMPT_BYTES
from integration.in_process import Served, encode, refusal, served
from tiny_checkpoints import build_sd1

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(sd1: Path) -> AsyncIterator[Served]:
    async with served("text-encoder", sd1) as text_encoder:
        yield text_encoder


async def test_guidance_adds_the_negative_half_and_an_absent_negative_prompt_is_empty(
    stage: Served,
):
    plain = await encode(stage, "a red circle")
    absent = (
        await stage.stub.Encode(
            text_encoder_pb2.EncodeRequest(prompt="a red circle", guidance=True)
        )
    ).result
    empty = await encode(stage, "a red circle", "")
    blue = await encode(stage, "a red circle", "blue")
    assert set(plain.conditioning.tensors) == {"prompt_embeds"}
    assert set(absent.conditioning.tensors) == {"prompt_embeds", "negative_prompt_embeds"}
    assert absent.conditioning == empty.conditioning != blue.conditioning
    for result in (absent, blue):
        assert (
            result.conditioning.tensors["prompt_embeds"]
            == (plain.conditioning.tensors["prompt_embeds"])
        )


async def test_the_conditioning_says_in_which_space_it_is_and_who_made_it(stage: Served):
    described = await stage.describe()
    contract = (await encode(stage, "blue")).conditioning.contract
    [component] = [c for c in described.components if c.name == "text_encoder"]
    assert contract.kind == stage_pb2.KIND_CONDITIONING
    assert contract.space == component.fingerprint == described.produces[0].space
    assert contract.producer == described.fingerprint


async def test_no_prompt_is_refused_and_an_empty_one_is_encoded_as_given(stage: Served):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stage.stub.Encode(text_encoder_pb2.EncodeRequest())
    told = refusal(caught.value)
    assert (told.code, told.field) == (grpc.StatusCode.INVALID_ARGUMENT, "prompt")
    assert (await encode(stage, "")).conditioning.tensors["prompt_embeds"].data


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
async def test_a_text_over_the_limit_is_refused_with_both_sizes(stage: Served, field: str):
    texts = {"prompt": "red", "negative_prompt": "blue"}
    texts[field] = "é" * (MAX_PROMPT_BYTES // 2) + "!"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await encode(stage, **texts)
    told = refusal(caught.value)
    assert (told.code, told.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert str(MAX_PROMPT_BYTES + 1) in told.message
    assert str(MAX_PROMPT_BYTES) in told.message
    texts[field] = texts[field][:-1]
    assert (await encode(stage, **texts)).conditioning.tensors


async def test_the_words_that_were_cut_are_named(stage: Served):
    result = await encode(stage, "red " * 75 + "small blue square", "white " * 80)
    warnings = {warning.field: warning for warning in result.warnings}
    assert set(warnings) == {"prompt", "negative_prompt"}
    assert warnings["prompt"].code == stage_pb2.WARNING_CODE_PROMPT_TRUNCATED
    assert warnings["prompt"].detail == "small blue square"
    assert "small blue square" in warnings["prompt"].message


async def test_a_text_is_encoded_once_and_then_taken_from_the_cache(stage: Served):
    first = await encode(stage, "above the white square", "large")
    assert first.usage.cache_hits == 0
    assert first.usage.compute_ms > 0
    second = await encode(stage, "above the white square", "small")
    assert second.usage.cache_hits == 1
    third = await encode(stage, "above the white square", "large")
    assert (third.usage.cache_hits, third.usage.compute_ms) == (2, 0)
    assert third.conditioning == first.conditioning


async def test_equal_texts_at_the_same_time_are_encoded_once(stage: Served):
    results = await asyncio.gather(*(encode(stage, "circle on circle") for _ in range(8)))
    assert sum(result.usage.cache_hits for result in results) == 7
    assert (
        len({result.conditioning.SerializeToString(deterministic=True) for result in results}) == 1
    )


async def test_a_request_for_other_weights_or_from_a_newer_client_is_refused(stage: Served):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await encode(stage, "red", stage_fingerprint="f00d")
    assert refusal(caught.value).reason == "FINGERPRINT"
    request = text_encoder_pb2.EncodeRequest(prompt="red")
    request.MergeFromString(b"\xf8\x3f\x01")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stage.stub.Encode(request)
    assert refusal(caught.value).reason == "UNKNOWN_FIELD"


async def test_a_line_for_one_request_takes_one_with_guidance(sd1: Path):
    async with served("text-encoder", sd1, max_queue_jobs=1) as stage:
        for word in ("red", "green", "blue"):
            result = await encode(stage, f"a {word} circle", f"no {word}")
            assert len(result.conditioning.tensors) == 2
