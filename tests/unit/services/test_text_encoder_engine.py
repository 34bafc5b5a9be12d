"""The text encoder's cache and its sharing of work, on a toy encoder that can be held."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from carrara_models.parts import EXACT, Encoded, Numerics, Texts
from carrara_services.refusals import DeadlineError
from carrara_services.text_encoder.engine import Cache, TextEncoderEngine


@dataclass
class ToyTextEncoder:
    """Encodes a text as its length; waits for `turn` before each call, and fails at "bad"."""

    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1000))
    encoded: list[str] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)  # how many texts each had
    numerics: Numerics = EXACT

    def split(self, texts: Texts) -> Sequence[Texts]:
        return texts.halves

    def encode(self, pieces: Sequence[Texts]) -> list[Encoded]:
        assert self.turn.acquire(timeout=10)
        self.calls.append(len(pieces))
        name = "negative_prompt_embeds" if pieces[0].prompt is None else "prompt_embeds"
        made = []
        for piece in pieces:
            text = piece.prompt or piece.negative_prompt or ""
            self.encoded.append(text)
            if text == "bad":
                raise ValueError("bad text")
            made.append(Encoded(tensors={name: torch.tensor([[float(len(text))]])}))
        return made


def engine_for(encoder: ToyTextEncoder, **options: Any) -> TextEncoderEngine:
    return TextEncoderEngine(
        encoder, max_queue_jobs=9, max_cached_texts=8, max_cached_bytes=10**6, **options
    )


def encoded(number: float) -> Encoded:
    embeds = torch.full((25,), number, dtype=torch.float32)  # 100 bytes
    return Encoded(tensors={"prompt_embeds": embeds})


def test_the_cache_drops_what_was_not_used_for_longest():
    cache = Cache(max_texts=2, max_bytes=10**6)
    for index, text in enumerate("ab"):
        cache.put(Texts(text), encoded(index))
    assert cache.get(Texts("a")) is not None
    cache.put(Texts("c"), encoded(2))
    assert cache.get(Texts("b")) is None
    assert cache.get(Texts("a")) is not None
    assert cache.get(Texts("c")) is not None


def test_the_cache_holds_no_more_bytes_than_allowed():
    cache = Cache(max_texts=100, max_bytes=350)
    for text in "abcde":
        cache.put(Texts(text), encoded(0))
        assert cache.bytes <= 350
    assert len(cache) == 3
    cache.put(Texts("e"), encoded(1))
    assert (len(cache), cache.bytes) == (3, 303)
    cache.put(Texts("x" * 400), encoded(0))
    assert (len(cache), cache.bytes) == (0, 0)


def test_a_field_has_its_own_tensors():
    cache = Cache(max_texts=100, max_bytes=350)
    cache.put(Texts("a"), encoded(0))
    assert cache.get(("negative_prompt", "a")) is None


async def test_a_request_that_goes_away_does_not_take_the_text_from_the_others():
    encoder = ToyTextEncoder(turn=threading.Semaphore(0))
    engine = engine_for(encoder)
    tasks = [asyncio.create_task(engine.encode(Texts("red"), deadline=None)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    encoder.turn.release(10)
    results = await asyncio.gather(*tasks[1:])
    assert tasks[0].cancelled()
    assert encoder.encoded == ["red"]
    assert all(result.encoded is results[0].encoded for result in results)
    engine.worker.close()


@pytest.mark.parametrize("exact", [True, False])
async def test_texts_of_one_kind_are_encoded_together_where_that_may_change_bits(exact: bool):
    encoder = ToyTextEncoder(turn=threading.Semaphore(0), numerics=Numerics(exact=exact))
    engine = engine_for(encoder, max_batch_rows=3)
    texts = [
        *(Texts(words) for words in ("first", "a", "bb", "ccc", "dddd")),
        Texts(None, negative=True, negative_prompt="e"),
        Texts("f", clip_skip=1),
    ]
    tasks = []
    for text in texts:
        tasks.append(asyncio.create_task(engine.encode(text, deadline=None)))
        await asyncio.sleep(0.02)
    encoder.turn.release(10)
    made = await asyncio.gather(*tasks)
    assert [float(each.encoded.tensors.popitem()[1]) for each in made] == [5, 1, 2, 3, 4, 1, 1]
    assert encoder.calls == ([1] * 7 if exact else [1, 3, 1, 1, 1])
    engine.worker.close()


async def test_work_that_nobody_waits_for_leaves_the_line():
    encoder = ToyTextEncoder(turn=threading.Semaphore(0))
    engine = engine_for(encoder)
    first = asyncio.create_task(engine.encode(Texts("red"), deadline=None))
    await asyncio.sleep(0.05)
    soon = asyncio.get_running_loop().time() + 0.05
    with pytest.raises(DeadlineError, match="text-encoder"):
        await engine.encode(Texts("blue"), deadline=soon)
    await asyncio.sleep(0.01)
    assert engine.worker.line.queued == 0
    encoder.turn.release(10)
    await first
    assert encoder.encoded == ["red"]
    engine.worker.close()


async def test_a_failed_text_fails_those_that_wait_for_it_and_is_tried_again_later():
    encoder = ToyTextEncoder()
    engine = engine_for(encoder)
    for _ in range(2):
        results = await asyncio.gather(
            *(engine.encode(Texts("bad"), deadline=None) for _ in range(2)),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [ValueError, ValueError]
    assert encoder.encoded == ["bad", "bad"]
    assert not (await engine.encode(Texts("good"), deadline=None)).cached
    assert (await engine.encode(Texts("good"), deadline=None)).cached
    engine.worker.close()


async def test_a_text_asked_for_again_while_its_cancelled_work_ends_is_encoded_anew():
    encoder = ToyTextEncoder(turn=threading.Semaphore(0))
    engine = engine_for(encoder)
    first = asyncio.create_task(engine.encode(Texts("red"), deadline=None))
    await asyncio.sleep(0.05)
    first.cancel()
    again = asyncio.create_task(engine.encode(Texts("red"), deadline=None))
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    encoder.turn.release(10)
    assert (await again).encoded.tensors["prompt_embeds"].item() == 3
    engine.worker.close()
