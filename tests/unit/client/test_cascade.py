from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_stages
from toy_stages import ToyCascade

from carrara import AsyncCascade, Cascade, CascadeClosedError, Finished, Progress
from carrara.exceptions import InvalidArgumentError, MissingExtraError


@pytest.fixture
def toys() -> Iterator[ToyCascade]:
    """Toy stages that are served by a thread of their own."""
    with toy_stages.serving_in_a_thread() as toys:
        yield toys


def test_it_paints_what_the_async_cascade_paints(toys: ToyCascade) -> None:
    async def paint() -> bytes:
        async with await AsyncCascade.connect(**toys.addresses) as cascade:
            return (await cascade.generate("a circle", seed=7)).images[0].image.tobytes()

    with Cascade.connect(**toys.addresses) as cascade:
        picture = cascade.generate("a circle", seed=7).images[0].image.tobytes()
    assert picture == asyncio.run(paint())


def test_both_cascades_have_the_same_surface() -> None:
    renamed = {"aclose": "close"}
    for name, member in vars(AsyncCascade).items():
        if name.startswith("_"):
            continue
        twin = getattr(Cascade, renamed.get(name, name))
        if callable(getattr(AsyncCascade, name)):
            ours, theirs = inspect.signature(getattr(AsyncCascade, name)), inspect.signature(twin)
            assert ours.parameters == theirs.parameters, member


def test_a_stream_comes_event_by_event(toys: ToyCascade) -> None:
    with Cascade.connect(**toys.addresses) as cascade:
        events = list(cascade.stream("a circle", seed=7))
    assert [e.step for e in events if isinstance(e, Progress) and e.role == "generator"] == [
        1,
        2,
        3,
    ]
    assert isinstance(events[-1], Finished)


def test_leaving_a_stream_early_cancels_the_running_job(toys: ToyCascade) -> None:
    toys.generator.step_seconds = 0.1
    with Cascade.connect(**toys.addresses) as cascade:
        for event in cascade.stream("a circle", num_inference_steps=100):
            if isinstance(event, Progress) and event.role == "generator":
                break
        wait_until(lambda: toys.generator.cancelled == 1)
        assert cascade.generate("a circle", num_inference_steps=1).images


def test_ctrl_c_cancels_the_running_job(toys: ToyCascade) -> None:
    toys.generator.step_seconds = 0.1

    def interrupt() -> None:
        wait_until(lambda: toys.generator.running == 1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with Cascade.connect(**toys.addresses) as cascade:
        with pytest.raises(KeyboardInterrupt):
            cascade.generate("a circle", num_inference_steps=100)
        wait_until(lambda: toys.generator.cancelled == 1)
        assert cascade.generate("a circle", num_inference_steps=1).images


def test_ctrl_c_leaves_a_stream_with_nothing_else_to_say(toys: ToyCascade) -> None:
    toys.generator.step_seconds = 0.5

    def interrupt() -> None:
        wait_until(lambda: toys.generator.running == 1)
        time.sleep(0.1)  # the caller waits for the next event
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with Cascade.connect(**toys.addresses) as cascade:
        with pytest.raises(KeyboardInterrupt) as caught:
            list(cascade.stream("a circle", num_inference_steps=100))
        assert caught.value.__context__ is None
        wait_until(lambda: toys.generator.cancelled == 1)


def test_closing_ends_its_thread_and_what_another_thread_waits_for(toys: ToyCascade) -> None:
    toys.generator.step_seconds = 0.1
    before = threading.active_count()
    cascade = Cascade.connect(**toys.addresses)
    failures: list[Exception] = []

    def paint() -> None:
        try:
            cascade.generate("a circle", num_inference_steps=100)
        except Exception as error:
            failures.append(error)

    painting = threading.Thread(target=paint)
    painting.start()
    wait_until(lambda: toys.generator.running == 1)
    cascade.close()
    painting.join(timeout=5)
    assert [type(failure) for failure in failures] == [CascadeClosedError]
    wait_until(lambda: toys.generator.cancelled == 1)
    cascade.close()
    with pytest.raises(CascadeClosedError):
        cascade.generate("a circle")
    assert threading.active_count() == before


def test_a_connection_that_fails_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(InvalidArgumentError):
        Cascade.connect(generators=["nowhere"])
    assert threading.active_count() == before


def test_threads_may_share_it(toys: ToyCascade) -> None:
    with Cascade.connect(**toys.addresses) as cascade:
        alone = [cascade.generate(prompt, seed=1).images[0].image.tobytes() for prompt in "abcd"]
        together: dict[str, bytes] = {}

        def paint(prompt: str) -> None:
            together[prompt] = cascade.generate(prompt, seed=1).images[0].image.tobytes()

        threads = [threading.Thread(target=paint, args=[prompt]) for prompt in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [together[prompt] for prompt in "abcd"] == alone


def wait_until(condition: object, *, seconds: float = 5) -> None:
    begin = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - begin < seconds, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("named", "started"),
    [
        ({}, []),
        ({"checkpoint": "one"}, ["one"]),
        ({"positional": ("one", Path("two"))}, ["one", "two"]),
    ],
)
def test_checkpoints_are_named_one_by_one_or_by_keyword(
    monkeypatch: pytest.MonkeyPatch, named: dict[str, object], started: list[str]
) -> None:
    asked: list[list[str]] = []

    def start(*, checkpoints: list[str]) -> None:
        asked.append(checkpoints)
        raise MissingExtraError("nothing runs here")

    monkeypatch.setattr("carrara.aio.start_embedded", start)
    positional = named.pop("positional", ())
    with pytest.raises(MissingExtraError):
        Cascade.embedded(*positional, **named)  # type: ignore[arg-type, misc]
    assert asked == [started]
