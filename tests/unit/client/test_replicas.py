from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import grpc
import pytest
import toy_stages
from toy_stages import Fault, ToyCascade, ToyStage, fault_details, serving, serving_all

from carrara import AsyncCascade, ContractError, StageUnavailableError


@pytest.fixture
async def toys() -> AsyncIterator[ToyCascade]:
    async with serving_all() as toys:
        yield toys


@pytest.fixture
async def replicas() -> AsyncIterator[list[ToyStage]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serving(toy_stages.generator())) for _ in range(3)]


def connect(toys: ToyCascade, *generators: ToyStage) -> dict[str, list[str]]:
    listed = ", ".join(toy.address for toy in generators)
    return toys.addresses | {"generators": [listed]}


async def test_replicas_take_turns(toys: ToyCascade, replicas: list[ToyStage]) -> None:
    async with await AsyncCascade.connect(**connect(toys, *replicas)) as cascade:
        result = await cascade.generate("a circle", num_images=9)
    assert [len(replica.requests) for replica in replicas] == [3, 3, 3]
    assert result.usage[1].address == ", ".join(replica.address for replica in replicas)


async def test_a_dns_name_is_an_address(toys: ToyCascade, replicas: list[ToyStage]) -> None:
    port = replicas[0].address.rpartition(":")[2]
    addresses = toys.addresses | {"generators": [f"dns:///localhost:{port}"]}
    async with await AsyncCascade.connect(**addresses) as cascade:
        await cascade.generate("a circle", num_images=2)
    assert len(replicas[0].requests) == 2


async def test_a_dead_replica_costs_no_request(toys: ToyCascade, replicas: list[ToyStage]) -> None:
    async with AsyncExitStack() as stack:
        doomed = await stack.enter_async_context(serving(toy_stages.generator()))
        cascade = await AsyncCascade.connect(**connect(toys, doomed, *replicas))
        await cascade.generate("a circle", num_images=4)
        assert doomed.requests
    for _ in range(4):
        await cascade.generate("a circle", num_images=4)
    assert len(doomed.requests) == 1, "it is gone"
    await cascade.aclose()


async def test_one_replica_that_answers_is_enough_to_connect(
    toys: ToyCascade, replicas: list[ToyStage]
) -> None:
    async with serving(toy_stages.generator()) as dead:
        pass
    begin = time.monotonic()
    async with await AsyncCascade.connect(**connect(toys, dead, replicas[0])) as cascade:
        assert time.monotonic() - begin < 3
        await cascade.generate("a circle", num_images=4)
    assert len(replicas[0].requests) == 4


async def test_all_replicas_dead_is_reported_quickly(toys: ToyCascade) -> None:
    async with AsyncExitStack() as stack:
        doomed = [
            await stack.enter_async_context(serving(toy_stages.generator())) for _ in range(2)
        ]
        cascade = await AsyncCascade.connect(**connect(toys, *doomed))
        await cascade.generate("a circle")
    begin = time.monotonic()
    with pytest.raises(StageUnavailableError) as caught:
        await cascade.generate("a circle")
    assert time.monotonic() - begin < 5
    assert caught.value.address in {toy.address for toy in doomed}
    await cascade.aclose()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
        (grpc.StatusCode.FAILED_PRECONDITION, "FINGERPRINT"),
        (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    ],
)
async def test_another_replica_is_asked_where_that_can_help(
    toys: ToyCascade, replicas: list[ToyStage], code: grpc.StatusCode, reason: str
) -> None:
    async with await AsyncCascade.connect(**connect(toys, *replicas)) as cascade:
        replicas[0].faults = [Fault(code, details=fault_details(reason))] * 10
        await cascade.generate("a circle", num_images=3)
    assert len(replicas[0].faults) < 10, "the fault took place"
    assert len(replicas[1].requests) + len(replicas[2].requests) == 3


async def test_replicas_of_different_weights_are_refused(
    toys: ToyCascade, replicas: list[ToyStage]
) -> None:
    replicas[1].description.fingerprint = "9" * 64
    with pytest.raises(ContractError, match=r"different weights .*999999999999") as caught:
        await AsyncCascade.connect(**connect(toys, *replicas))
    assert caught.value.reason == "FINGERPRINT"


async def test_a_unix_socket_is_an_address(toys: ToyCascade, tmp_path: object) -> None:
    bind = f"unix:{tmp_path}/stage"
    async with serving(toy_stages.generator(), bind=bind) as generator:
        addresses = toys.addresses | {"generators": [generator.address]}
        async with await AsyncCascade.connect(**addresses) as cascade:
            result = await cascade.generate("a circle")
    assert result.usage[1].address == bind
