from __future__ import annotations

import asyncio

import grpc
import pytest
import toy_stages
from hypothesis import given
from hypothesis import strategies as st
from toy_stages import Fault, serving

from carrara.connections import MAX_ATTEMPTS, Request, Stage
from carrara.exceptions import StageUnavailableError
from carrara.retry_budget import MAX_TOKENS, RESERVE_TOKENS, TOKENS_PER_CALL, RetryBudget
from carrara.v1 import text_encoder_pb2

CALLS = 500
NOT_AGAIN = "not tried again, because too many calls to this stage are failing"


def withdrawn(budget: RetryBudget) -> int:
    """Empties the budget; says how many replays it held."""
    replays = 0
    while budget.withdraw():
        replays += 1
    return replays


def test_a_fresh_budget_holds_the_reserve() -> None:
    assert withdrawn(RetryBudget()) == RESERVE_TOKENS


def test_five_calls_pay_for_one_replay() -> None:
    budget = RetryBudget()
    withdrawn(budget)
    for _ in range(4):
        budget.deposit()
        assert not budget.withdraw()
    for _ in range(2):  # one more than five, since five times 0.2 need not be 1 in binary
        budget.deposit()
    assert budget.withdraw()
    assert not budget.withdraw()


def test_a_long_healthy_time_saves_up_no_more_than_the_cap() -> None:
    budget = RetryBudget()
    for _ in range(100_000):
        budget.deposit()
    assert withdrawn(budget) == MAX_TOKENS


@given(st.lists(st.integers(0, 5), max_size=300))
def test_replays_never_exceed_the_reserve_and_a_fifth_of_the_calls(wanted: list[int]) -> None:
    budget = RetryBudget()
    replays = 0
    for replays_wanted in wanted:
        budget.deposit()
        replays += sum(budget.withdraw() for _ in range(replays_wanted))
        assert replays <= RESERVE_TOKENS + TOKENS_PER_CALL * len(wanted)


async def test_an_outage_is_not_made_worse_by_replays() -> None:
    async with serving(toy_stages.text_encoder()) as toy:
        toy.faults = [Fault(grpc.StatusCode.UNAVAILABLE)] * (CALLS * MAX_ATTEMPTS * 3)
        stage = Stage(toy.address, role="text-encoder")
        attempts: list[None] = []
        at_once = asyncio.Semaphore(25)

        async def fail_once() -> str:
            async with at_once:
                with pytest.raises(StageUnavailableError) as caught:
                    await stage.encode(
                        text_encoder_pb2.EncodeRequest(prompt="a circle"),
                        request=Request.lasting(60),
                        on_attempt=lambda: attempts.append(None),
                    )
            return str(caught.value)

        messages = await asyncio.gather(*(fail_once() for _ in range(CALLS)))
        await stage.close()
    assert len(toy.requests) > CALLS, "there were replays"
    assert len(toy.requests) <= CALLS * 1.2 + 100
    assert len(toy.requests) == len(attempts), "every call that reached the stage was counted"
    assert sum(NOT_AGAIN in message for message in messages) > CALLS / 2


async def test_calls_that_succeed_pay_for_replays_after_an_outage() -> None:
    async with serving(toy_stages.text_encoder()) as toy:
        stage = Stage(toy.address, role="text-encoder")

        async def encode() -> None:
            message = text_encoder_pb2.EncodeRequest(prompt="a circle")
            await stage.encode(message, request=Request.lasting(60))

        withdrawn(stage._budget)
        toy.faults = [Fault(grpc.StatusCode.UNAVAILABLE)]
        with pytest.raises(StageUnavailableError, match=NOT_AGAIN):
            await encode()
        for _ in range(6):
            await encode()
        toy.faults = [Fault(grpc.StatusCode.UNAVAILABLE)]
        await encode()
        assert not toy.faults, "it was replayed"
        await stage.close()
