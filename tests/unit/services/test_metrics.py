"""What the metrics count, on a waiting line by hand, on the loop with a toy, and over HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from carrara_models.parts import Encoded, Texts
from carrara_services.admission.following import finished
from carrara_services.admission.happenings import Failed, Finished, Usage
from carrara_services.admission.line import WaitingLine
from carrara_services.denoising.loop import DenoisingLoop
from carrara_services.serving.addresses import check_metrics_bind
from carrara_services.serving.describe import Runtime
from carrara_services.serving.errors import TABLE
from carrara_services.serving.metrics import REASONS, TICK_ROWS, Metrics, MetricsServer
from carrara_services.serving.settings import SettingsError
from carrara_services.text_encoder.engine import Cache
from carrara_services.work import Work
from unit.services.toy_generator import ToyGenerator, toy_request

OUTCOMES = ("finished", "failed", "cancelled", "expired", "handed_back", "suspended")
END = Finished("result", Usage(queue_ms=0, running_ms=0, compute_ms=0))


def read(metrics: Metrics, name: str, **labels: str) -> float:
    value = metrics.registry.get_sample_value(name, labels)
    assert value is not None, f"there is no {name} {labels}"
    return value


def outcomes(metrics: Metrics) -> dict[str, int]:
    """How many jobs ended in which way, without those in which none did."""
    counts = {
        each: int(read(metrics, "carrara_jobs_ended_total", outcome=each)) for each in OUTCOMES
    }
    return {each: count for each, count in counts.items() if count}


def watched_line(*, max_jobs: int = 8) -> tuple[WaitingLine, Metrics]:
    line, metrics = WaitingLine(max_jobs=max_jobs), Metrics()
    metrics.watch_line(line)
    return line, metrics


def ignore(happening: object) -> None:
    pass


def held() -> threading.Semaphore:
    return threading.Semaphore(0)


@contextmanager
def looping(generator: ToyGenerator) -> Iterator[tuple[DenoisingLoop, Metrics]]:
    loop, metrics = DenoisingLoop(generator, max_queue_jobs=8, max_batch_rows=8), Metrics()
    metrics.watch_line(loop.line)
    loop.watch = metrics.watch_batch(rows=lambda: loop.rows, max_batch_rows=lambda: 8)
    try:
        yield loop, metrics
    finally:
        if generator.turn is not None:
            generator.turn.release(1000)
        loop.close()


def run(loop: DenoisingLoop, request) -> asyncio.Task[Finished]:
    work = Work(request)
    return asyncio.create_task(finished(loop.line, work, deadline=None, stage="generator"))


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - threads change it
            await asyncio.sleep(0.001)


def ticks(metrics: Metrics) -> tuple[int, int, int]:
    """How many, with how many rows and steps in all."""
    names = ("carrara_tick_seconds_count", "carrara_tick_rows_sum", "carrara_steps_total")
    return tuple(int(read(metrics, name)) for name in names)


def test_the_reasons_are_those_that_callers_are_told():
    assert set(REASONS) == {reason for _, _, reason, _ in TABLE} | {"INTERNAL"}


def test_every_metric_has_a_help_text_and_a_name_in_base_units():
    _, metrics = watched_line()
    metrics.watch_batch(rows=lambda: 0, max_batch_rows=lambda: 1)
    text = generate_latest(metrics.registry).decode()
    families = [f for f in text_string_to_metric_families(text) if f.name.startswith("carrara_")]
    assert len(families) > 15
    for family in families:
        assert family.documentation.endswith("."), family.name
        assert not family.name.endswith(("_ms", "_mb", "_percent")), family.name
        if family.type == "counter":
            assert f"# TYPE {family.name}_total counter" in text


def test_stages_of_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.job_ended("finished", running_seconds=1.0)
    assert outcomes(one) == {"finished": 1}
    assert outcomes(other) == {}


def test_a_line_is_read_when_somebody_asks():
    line, metrics = watched_line(max_jobs=5)
    for name in "abc":
        line.submit(name, listener=ignore)
    line.take()
    assert read(metrics, "carrara_jobs", state="queued") == line.queued == 2
    assert read(metrics, "carrara_jobs", state="running") == line.running == 1
    assert read(metrics, "carrara_max_queue_jobs") == 5
    assert read(metrics, "carrara_queue_wait_seconds_count") == 1


@pytest.mark.parametrize(("end", "outcome"), [(END, "finished"), (Failed(ValueError()), "failed")])
def test_a_job_that_ran_is_counted_by_its_end_before_its_caller_knows(end, outcome: str):
    line, metrics = watched_line()
    seen = []
    line.submit("work", listener=lambda happening: seen.append((happening, outcomes(metrics))))
    line.leave(line.take(), end)
    assert seen[-1] == (end, {outcome: 1})
    assert read(metrics, "carrara_job_running_seconds_count") == 1


@pytest.mark.parametrize(("expired", "outcome"), [(False, "cancelled"), (True, "expired")])
def test_a_job_whose_caller_goes_is_counted_once_and_when_it_has_left(expired: bool, outcome: str):
    line, metrics = watched_line()
    running = line.submit("running", listener=ignore)
    waiting = line.submit("waiting", listener=ignore)
    assert line.take() is running
    line.abandon(waiting, expired=expired)
    assert outcomes(metrics) == {outcome: 1}
    assert read(metrics, "carrara_job_running_seconds_count") == 0
    line.abandon(running, expired=expired)
    assert outcomes(metrics) == {outcome: 1}, "it still has its row"
    line.leave(running, END)  # a worker that cannot stop half-way brings a result nobody gets
    assert outcomes(metrics) == {outcome: 2}
    assert read(metrics, "carrara_job_running_seconds_count") == 1
    line.abandon(running)
    assert outcomes(metrics) == {outcome: 2}


def test_what_waits_when_the_line_closes_was_handed_back_and_when_the_worker_dies_failed():
    line, metrics = watched_line()
    for name in "abc":
        line.submit(name, listener=ignore)
    line.take()
    line.close()
    assert outcomes(metrics) == {"handed_back": 2}
    line.abort()
    assert outcomes(metrics) == {"handed_back": 2, "failed": 1}
    assert read(metrics, "carrara_jobs", state="running") == 0


async def test_a_tick_is_one_call_of_one_group():
    generator = ToyGenerator(turn=held())
    with looping(generator) as (loop, metrics):
        tasks = [run(loop, toy_request(0, steps=3, guided=True))]
        await until(lambda: loop.rows == 2)
        tasks += [run(loop, toy_request(1, steps=2, height=16)), run(loop, toy_request(2, steps=2))]
        await until(lambda: loop.line.queued == 2)
        generator.turn.release(100)
        await asyncio.gather(*tasks)
        assert generator.calls == [[0], [1], [0, 2], [1], [0, 2]]
        await until(lambda: ticks(metrics)[0] == 5)
    assert ticks(metrics) == (5, 2 + 3 + 1 + 3 + 1, 3 + 2 + 2)
    at_most = [read(metrics, "carrara_tick_rows_bucket", le=f"{le:.1f}") for le in TICK_ROWS]
    assert at_most == [2, 3, 5, 5, 5, 5, 5]


async def test_a_call_that_fails_is_no_tick_and_those_of_each_job_alone_are():
    generator = ToyGenerator(turn=held(), poisoned=frozenset({2}))
    with looping(generator) as (loop, metrics):
        tasks = [run(loop, toy_request(0, steps=2))]
        await until(lambda: loop.rows == 1)
        tasks += [run(loop, toy_request(seed, steps=1)) for seed in (1, 2)]
        await until(lambda: loop.line.queued == 2)
        generator.turn.release(100)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert generator.calls == [[0], [0, 1, 2], [0], [1], [2]], "the fault took place"
        assert isinstance(results[2], RuntimeError)
        await until(lambda: outcomes(metrics) == {"finished": 2, "failed": 1})
    assert ticks(metrics) == (3, 3, 3)


class Telling(ToyGenerator):
    """Tells when its network is called."""

    def predict(self, jobs):
        self.called.set()
        return super().predict(jobs)


async def test_a_tick_that_began_before_the_watch_is_not_counted():
    generator = Telling(turn=held())
    generator.called = threading.Event()
    with looping(generator) as (loop, metrics):
        watch, loop.watch = loop.watch, None
        job = run(loop, toy_request(1, steps=3))
        assert await asyncio.to_thread(generator.called.wait, 20)
        loop.watch = watch
        generator.turn.release(100)
        await job
    assert generator.calls == [[1], [1], [1]]
    assert ticks(metrics) == (2, 2, 2)


def test_the_cache_tells_what_it_holds_and_how_often_it_helped():
    cache, metrics = Cache(max_texts=2, max_bytes=10**6), Metrics()
    metrics.watch_cache(cache)
    embeds = torch.zeros(25)
    for text in ("a", "bb", "ccc"):
        cache.put(Texts(text), Encoded(tensors={"prompt_embeds": embeds}))
    cache.hits, cache.misses = 4, 3
    assert read(metrics, "carrara_cache_texts") == len(cache) == 2
    assert read(metrics, "carrara_cache_bytes") == cache.bytes == 2 * 100 + 5
    assert read(metrics, "carrara_cache_hits_total") == 4
    assert read(metrics, "carrara_cache_misses_total") == 3


def test_a_devices_memory_is_read_when_somebody_asks():
    memory = {"allocated": 5, "reserved": 8}
    runtime = Runtime(
        exact=False,
        engine="torch",
        precision="float16",
        device="a device",
        num_threads=1,
        versions={"carrara": "1.2.3"},
        device_memory={kind: lambda kind=kind: memory[kind] for kind in memory},
    )
    metrics = Metrics()
    metrics.tell_stage(ToyGenerator(), role="generator", checkpoint="toy", runtime=runtime)
    memory["allocated"] = 6
    assert read(metrics, "carrara_device_memory_bytes", kind="allocated") == 6
    assert read(metrics, "carrara_device_memory_bytes", kind="reserved") == 8
    assert read(
        metrics,
        "carrara_stage_info",
        role="generator",
        family="toy",
        checkpoint="toy",
        fingerprint="toy",
        device="a device",
        precision="float16",
        numerics="fast",
        version="1.2.3",
    )


@contextmanager
def answering(metrics: Metrics, bind: str = "127.0.0.1:0") -> Iterator[str]:
    server = MetricsServer(metrics, bind=bind)
    try:
        yield server.address
    finally:
        server.close()


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        return answer.read().decode()


async def test_a_scrape_is_answered_while_the_loop_hangs():
    generator = ToyGenerator(turn=held())
    with looping(generator) as (loop, metrics), answering(metrics) as address:
        job = run(loop, toy_request(1))
        waiting = run(loop, toy_request(2, guided=True))
        await until(lambda: loop.line.running >= 1 and not generator.calls)
        with loop.line._changed:  # not even its lock is free
            text = await asyncio.to_thread(scrape, address)
        assert 'carrara_jobs{state="running"}' in text
        assert "carrara_tick_seconds_count 0.0" in text
        assert not job.done(), "the loop must have hung all the while"
        generator.turn.release(100)
        await asyncio.gather(job, waiting)


def skip_without_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_the_address_has_the_port_that_was_taken_and_is_free_once_closed(bind: str):
    if bind.startswith("["):
        skip_without_ipv6()
    server = MetricsServer(Metrics(), bind=bind)
    assert server.address.startswith(bind.removesuffix("0"))
    assert not server.address.endswith(":0")
    assert "carrara_serving 0.0" in scrape(server.address)
    with pytest.raises(SettingsError, match=r"^--metrics-bind .*in use"):
        MetricsServer(Metrics(), bind=server.address)
    server.close()
    server.close()
    with answering(Metrics(), server.address) as address:
        assert address == server.address


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "localhost:5", "[::1]:7"])
def test_metrics_for_this_machine_alone_are_allowed(bind: str):
    check_metrics_bind(bind, insecure=False)


@pytest.mark.parametrize("bind", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1"])
def test_metrics_that_other_machines_reach_need_insecure(bind: str):
    with pytest.raises(SettingsError, match=r"^--metrics-bind .*--insecure"):
        check_metrics_bind(bind, insecure=False)
    check_metrics_bind(bind, insecure=True)


@pytest.mark.parametrize("bind", ["", "localhost", ":1", "localhost:65536", "unix:/tmp/x"])
def test_what_prometheus_cannot_read_is_refused(bind: str):
    with pytest.raises(SettingsError, match=r"^--metrics-bind .*give HOST:PORT$"):
        check_metrics_bind(bind, insecure=True)
