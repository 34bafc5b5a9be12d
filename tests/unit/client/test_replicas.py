from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import grpc
import pytest
import toy_stages
from toy_stages import Fault, ToyCascade, ToyStage, fault_details, serving, serving_all

from carrara import (
    AsyncCascade,
    ContractError,
    InvalidArgumentError,
    ResourceExhaustedError,
    StageUnavailableError,
    connections,
)
from carrara.retry_budget import RESERVE_TOKENS
from name_server import Names, name_server


@pytest.fixture
async def toys() -> AsyncIterator[ToyCascade]:
    async with serving_all() as toys:
        yield toys


@pytest.fixture
async def replicas() -> AsyncIterator[list[ToyStage]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serving(toy_stages.generator())) for _ in range(3)]


@pytest.fixture
async def namesakes() -> AsyncIterator[list[ToyStage]]:
    """Two replicas on one port of two addresses, as the name of `names` has them."""
    async with (
        serving(toy_stages.generator()) as first,
        serving(toy_stages.generator(), bind=f"127.0.0.2:{port_of(first)}") as second,
    ):
        yield [first, second]


@pytest.fixture
def names() -> Iterator[Names]:
    with name_server("127.0.0.1", "127.0.0.2") as names:
        yield names


def port_of(toy: ToyStage) -> int:
    return int(toy.address.rpartition(":")[2])


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


async def test_replicas_behind_one_name_take_turns(
    toys: ToyCascade, namesakes: list[ToyStage], names: Names
) -> None:
    addresses = toys.addresses | {"generators": [names.target(port_of(namesakes[0]))]}
    async with await AsyncCascade.connect(**addresses) as cascade:
        await cascade.generate("a circle")
        await asyncio.sleep(1)  # both have been reached by now
        await cascade.generate("a circle", num_images=8)
    assert names.questions
    assert min(len(replica.requests) for replica in namesakes) >= 4


async def test_a_name_s_new_replica_is_found_once_a_connection_ends(
    toys: ToyCascade, names: Names
) -> None:
    old = toy_stages.generator()
    async with serving(old, options=[("grpc.max_connection_age_ms", 2000)]):
        names.addresses = ["127.0.0.1"]
        addresses = toys.addresses | {"generators": [names.target(port_of(old))]}
        new = toy_stages.generator()
        async with (
            serving(new, bind=f"127.0.0.2:{port_of(old)}"),
            await AsyncCascade.connect(**addresses) as cascade,
        ):
            await cascade.generate("a circle", num_images=4)
            assert not new.requests
            questions = names.questions
            names.addresses.append("127.0.0.2")
            begin = time.monotonic()
            while not new.requests:
                assert time.monotonic() - begin < 20
                result = await cascade.generate("a circle")
                assert result.usage[1].attempts == 1, "an old connection ends without a loss"
                await asyncio.sleep(0.1)
    assert names.questions > questions


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


async def test_a_single_attempt_shows_the_refusal_that_another_replica_would_have_hidden(
    toys: ToyCascade, replicas: list[ToyStage]
) -> None:
    full = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, details=fault_details("QUEUE_FULL"))
    for replica in replicas:
        replica.faults = [full] * 10
    addresses = connect(toys, *replicas)
    async with await AsyncCascade.connect(**addresses, max_attempts=1) as cascade:
        with pytest.raises(ResourceExhaustedError):
            await cascade.generate("a circle")
    assert sum(10 - len(replica.faults) for replica in replicas) == 1
    with pytest.raises(InvalidArgumentError, match="max_attempts: 0 is not allowed"):
        await AsyncCascade.connect(**addresses, max_attempts=0)


async def test_the_replica_with_the_fewest_calls_is_asked(
    toys: ToyCascade, replicas: list[ToyStage]
) -> None:
    replicas[0].step_seconds = 0.3
    async with await AsyncCascade.connect(**connect(toys, *replicas)) as cascade:

        async def caller() -> None:
            for _ in range(5):
                await cascade.generate("a circle", num_inference_steps=2)

        await asyncio.gather(*(caller() for _ in range(6)))
    asked = [len(replica.requests) for replica in replicas]
    assert sum(asked) == 30
    assert asked[0] < 6, f"as slow as it is, it was asked {asked[0]} times of 30"


async def test_a_replica_that_fails_at_once_is_not_asked_the_most(
    toys: ToyCascade, replicas: list[ToyStage]
) -> None:
    replicas[0].faults = [Fault(grpc.StatusCode.UNAVAILABLE)] * 100
    for replica in replicas[1:]:
        replica.step_seconds = 0.05
    async with await AsyncCascade.connect(**connect(toys, *replicas)) as cascade:
        for _ in range(3):
            await asyncio.gather(
                *(cascade.generate("a circle") for _ in range(12)), return_exceptions=True
            )
    assert len(replicas[0].requests) <= 18, "half of the 36"


def full(*, limit: str) -> Fault:
    details = fault_details("QUEUE_FULL", retry_after_seconds=9, limit=limit)
    return Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, details=details)


@pytest.mark.parametrize("limit", ["jobs", "seconds"])
async def test_nobody_works_for_a_stage_that_has_just_said_to_be_full(
    toys: ToyCascade, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(connections, "MAX_REST_SECONDS", 0.5)
    toys.generator.faults = [full(limit=limit)]
    async with await AsyncCascade.connect(**toys.addresses) as cascade:
        with pytest.raises(ResourceExhaustedError) as caught:
            await cascade.generate("a circle")
        assert (caught.value.limit, caught.value.retry_after_seconds) == (limit, 9)
        asked = len(toys.text_encoder.requests), len(toys.generator.requests)
        with pytest.raises(ResourceExhaustedError, match="full, as it has just said") as caught:
            await cascade.generate("a circle")
        assert (caught.value.reason, caught.value.limit) == ("QUEUE_FULL", limit)
        assert 0 < caught.value.retry_after_seconds <= 0.5
        assert asked == (len(toys.text_encoder.requests), len(toys.generator.requests))
        await asyncio.sleep(caught.value.retry_after_seconds)
        await cascade.generate("a circle")


async def ends_of(cascade: AsyncCascade, count: int) -> tuple[int, int]:
    """How many of so many requests at once are painted, and how many refused."""
    ends = await asyncio.gather(
        *(cascade.generate("a circle") for _ in range(count)), return_exceptions=True
    )
    refused = [end for end in ends if isinstance(end, ResourceExhaustedError)]
    assert all(refusal.reason == "QUEUE_FULL" for refusal in refused)
    assert all(refusal.limit == "jobs" for refusal in refused)
    assert all(refusal.retry_after_seconds for refusal in refused)
    return count - len(refused), len(refused)


async def test_nobody_works_for_more_jobs_than_a_stage_has_room_for(toys: ToyCascade) -> None:
    load = toys.generator.description.load
    load.max_queue_jobs, load.max_batch_rows = 3, 4
    toys.generator.step_seconds = 0.1
    async with await AsyncCascade.connect(**toys.addresses) as cascade:
        assert await ends_of(cascade, 9) == (6, 3)  # 3 that wait, 2 of two rows, and one to try
        assert len(toys.text_encoder.requests) == 6
        # The one more was taken, so that there is room for another one.
        assert await ends_of(cascade, 9) == (7, 2)


async def test_after_a_refusal_as_many_are_begun_as_the_stage_has(
    toys: ToyCascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_REST_SECONDS", 0.1)
    toys.generator.step_seconds = 0.25
    async with await AsyncCascade.connect(**toys.addresses) as cascade:
        running = [asyncio.create_task(cascade.generate("a circle")) for _ in range(3)]
        await asyncio.sleep(0.3)
        toys.generator.faults = [full(limit="jobs")]
        with pytest.raises(ResourceExhaustedError):
            await cascade.generate("a circle")
        await asyncio.gather(*running)
        assert await ends_of(cascade, 8) == (3, 5)


async def test_a_stage_that_has_room_again_is_found_to_have_it(
    toys: ToyCascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_REST_SECONDS", 0.1)
    monkeypatch.setattr(connections, "PROBE_INTERVAL_SECONDS", 1)
    # Only jobs that run side by side raise the limit: without it, the first may be over too soon.
    toys.generator.step_seconds = 0.1
    toys.generator.faults = [full(limit="jobs")]
    async with await AsyncCascade.connect(**toys.addresses) as cascade:
        with pytest.raises(ResourceExhaustedError):
            await cascade.generate("a circle")
        await asyncio.sleep(0.15)
        assert await ends_of(cascade, 4) == (1, 3)
        await asyncio.sleep(1)
        assert [await ends_of(cascade, 4) for _ in range(4)] == [(2, 2), (3, 1), (4, 0), (4, 0)]


async def test_what_ends_in_an_error_takes_no_room(toys: ToyCascade) -> None:
    load = toys.generator.description.load
    load.max_queue_jobs, load.max_batch_rows = 1, 1
    invalid = Fault(grpc.StatusCode.INVALID_ARGUMENT, "no")
    async with await AsyncCascade.connect(**toys.addresses) as cascade:
        for stage in (toys.text_encoder, toys.generator, toys.decoder):
            stage.faults = [invalid] * 3
            for _ in range(3):
                with pytest.raises(InvalidArgumentError):
                    await cascade.generate("a circle")
        assert (await ends_of(cascade, 2)) == (2, 0)


async def test_a_deadline_that_is_too_soon_is_no_matter_of_others(toys: ToyCascade) -> None:
    toys.generator.faults = [full(limit="deadline")]
    async with await AsyncCascade.connect(**toys.addresses) as cascade:
        with pytest.raises(ResourceExhaustedError):
            await cascade.generate("a circle", timeout_seconds=1)
        await cascade.generate("a circle")


async def test_a_full_replica_is_passed_over_while_others_have_room(
    toys: ToyCascade, replicas: list[ToyStage]
) -> None:
    replicas[0].faults = [full(limit="jobs")] * 10
    async with await AsyncCascade.connect(**connect(toys, *replicas)) as cascade:
        results = [await cascade.generate("a circle") for _ in range(9)]
    assert len(replicas[0].faults) == 9
    assert sum(result.usage[1].attempts for result in results) == 10


async def test_behind_a_name_there_may_be_others_with_room(
    toys: ToyCascade, replicas: list[ToyStage]
) -> None:
    replicas[0].faults = [full(limit="jobs")]
    addresses = toys.addresses | {"generators": [f"dns:///localhost:{port_of(replicas[0])}"]}
    async with await AsyncCascade.connect(**addresses, max_attempts=1) as cascade:
        with pytest.raises(ResourceExhaustedError):
            await cascade.generate("a circle")
        await cascade.generate("a circle")


async def test_a_replay_goes_to_a_replica_that_was_not_asked_before(
    toys: ToyCascade, replicas: list[ToyStage]
) -> None:
    async with await AsyncCascade.connect(**connect(toys, *replicas)) as cascade:
        for doomed in replicas[:2]:
            doomed.faults = [Fault(grpc.StatusCode.UNAVAILABLE)] * 50
        for _ in range(9):
            result = await cascade.generate("a circle")
            assert result.usage[1].attempts <= 3
    assert [len(doomed.faults) < 50 for doomed in replicas[:2]] == [True, True]
    assert len(replicas[2].requests) == 9


async def test_however_many_jobs_a_draining_replica_hands_back_all_of_them_move(
    toys: ToyCascade, replicas: list[ToyStage]
) -> None:
    async with await AsyncCascade.connect(**connect(toys, *replicas[:2])) as cascade:
        # More than the reserve of replays allows.
        faults = [Fault(grpc.StatusCode.UNAVAILABLE, details=fault_details("DRAINING"))] * 200
        replicas[0].faults = faults
        replicas[1].step_seconds = 0.1
        painted = await asyncio.gather(*(cascade.generate("a circle") for _ in range(80)))
    assert sum(each.usage[1].attempts - 1 for each in painted) == 200 - len(replicas[0].faults)
    # How many meet it depends on how fast its end is told.
    assert 200 - len(replicas[0].faults) > RESERVE_TOKENS, "the fault took place"
    assert len(replicas[1].requests) == 80


@pytest.mark.parametrize("by_name", [False, True], ids=["by address", "by name"])
async def test_a_replica_that_does_not_serve_is_passed_over_before_it_refuses(
    toys: ToyCascade, namesakes: list[ToyStage], names: Names, by_name: bool
) -> None:
    doomed, other = namesakes
    addresses = connect(toys, doomed, other)
    if by_name:
        addresses["generators"] = [names.target(port_of(doomed))]
    async with await AsyncCascade.connect(**addresses) as cascade:
        await cascade.generate("a circle", num_images=4)
        asked = len(doomed.requests)
        assert asked == 2, "it has its turn as long as it serves"
        doomed.serving = False
        await asyncio.sleep(1)
        result = await cascade.generate("a circle", num_images=4)
        assert result.usage[1].attempts == 4
        assert len(doomed.requests) == asked
        doomed.serving = True
        await asyncio.sleep(1)
        await cascade.generate("a circle", num_images=4)
        assert len(doomed.requests) == asked + 2, "it has its turn again"


async def test_one_replica_that_serves_is_enough_to_connect(
    toys: ToyCascade, replicas: list[ToyStage]
) -> None:
    replicas[0].serving = False
    begin = time.monotonic()
    async with await AsyncCascade.connect(**connect(toys, *replicas[:2])) as cascade:
        assert time.monotonic() - begin < 5
        await cascade.generate("a circle", num_images=4)
    assert not replicas[0].requests
    assert len(replicas[1].requests) == 4


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
