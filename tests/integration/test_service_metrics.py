"""What a stage's metrics say, held against what was really sent to it and what it really did."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from carrara.tensors import from_numpy
from carrara.v1 import (
    decoder_pb2,
    generator_pb2,
    stage_pb2,
    stage_pb2_grpc,
    text_encoder_pb2,
    text_encoder_pb2_grpc,
)
from carrara_models.generators.latent_unet import LatentUNet
from carrara_models.text_encoders.clip import ClipTextEncoder
from carrara_services import embedded
from carrara_services.serving.app import StageServer
from carrara_services.serving.metrics import Metrics
from carrara_services.serving.settings import read_settings
from integration.in_process import (
    OPENERS,
    Served,
    encode,
    events,
    generate,
    held,
    read,
    refusal,
    served,
    was_called,
)
from integration.processes import starting
from tiny_checkpoints import build_sd1

GENERATE = "/carrara.v1.GeneratorService/Generate"
ENCODE = "/carrara.v1.TextEncoderService/Encode"
DESCRIBE = "/carrara.v1.StageService/Describe"
DECODE = "/carrara.v1.DecoderService/Decode"
# Of the process itself and of its interpreter; the library's.
FOREIGN = ("process_", "python_")


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


def by_label(stage: Served, name: str, label: str) -> dict[str, int]:
    """The values that are not 0, by one label and summed over the others."""
    counts: Counter[str] = Counter()
    for family in stage.server.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == name and sample.value:
                counts[sample.labels[label]] += int(sample.value)
    return dict(counts)


def outcomes(stage: Served) -> dict[str, int]:
    return by_label(stage, "carrara_jobs_ended_total", "outcome")


def refusals(stage: Served) -> dict[str, int]:
    return by_label(stage, "carrara_refusals_total", "reason")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - threads change it
            await asyncio.sleep(0.005)


async def until_equal(read_it: Callable[[], object], expected: object) -> None:
    """Waits for it: the last bit of accounting may come just after the caller's answer."""
    try:
        await until(lambda: read_it() == expected)
    except TimeoutError:
        assert read_it() == expected


@pytest.fixture(scope="module")
def job(sd1: Path) -> stage_pb2.Job:
    """A job of one step and one row."""

    async def make() -> stage_pb2.Conditioning:
        async with served("text-encoder", sd1) as text_encoder:
            return (await encode(text_encoder, "a red circle")).conditioning

    return stage_pb2.Job(
        conditioning=asyncio.run(make()),
        random_state=stage_pb2.RandomState(seed=7),
        arguments=stage_pb2.Arguments(num_inference_steps=1, guidance_scale=1.0, scheduler="ddim"),
    )


def but(job: stage_pb2.Job, *, steps: int = 1, guided: bool = False) -> stage_pb2.Job:
    changed = stage_pb2.Job()
    changed.CopyFrom(job)
    changed.arguments.num_inference_steps = steps
    if guided:
        tensors = changed.conditioning.tensors
        tensors["negative_prompt_embeds"].CopyFrom(tensors["prompt_embeds"])
        changed.arguments.guidance_scale = 4.0
    return changed


def call(generator: Served, job: stage_pb2.Job, **options: object) -> grpc.aio.UnaryStreamCall:
    return generator.stub.Generate(generator_pb2.GenerateRequest(job=job), **options)


@pytest.mark.parametrize("role", OPENERS)
async def test_a_stage_without_work_has_counted_nothing_not_even_its_warm_up(sd1: Path, role: str):
    async with served(role, sd1) as stage:
        counted = {
            sample.name: sample.value
            for family in stage.server.metrics.registry.collect()
            if family.type in ("counter", "histogram") and not family.name.startswith(FOREIGN)
            for sample in family.samples
            if sample.value and not sample.name.endswith("_created")
        }
        assert counted == {}
        assert read(stage, "carrara_serving") == 1
        info = [f for f in stage.server.metrics.registry.collect() if f.name == "carrara_stage"]
        [sample] = info[0].samples
        described = await stage.describe()
        assert sample.labels["role"] == role
        assert sample.labels["fingerprint"] == described.fingerprint
        assert sample.labels["checkpoint"] == described.checkpoint
        assert sample.labels["family"] == described.family
        assert sample.labels["version"] == described.provenance.versions["carrara"]
        assert (sample.labels["numerics"], sample.labels["precision"]) == ("exact", "float32")


async def test_steps_ticks_and_rows_are_those_of_the_jobs(sd1: Path, job: stage_pb2.Job):
    async with served("generator", sd1, max_batch_rows=16) as generator:
        results = [
            await generate(generator, but(job, steps=3, guided=True)),
            await generate(generator, but(job, steps=2)),
        ]
        assert [(r.usage.steps, r.usage.rows) for r in results] == [(3, 6), (2, 2)]
        await until_equal(lambda: read(generator, "carrara_tick_seconds_count"), 5)
        assert read(generator, "carrara_steps_total") == 5
        assert read(generator, "carrara_tick_rows_count") == 5
        assert read(generator, "carrara_tick_rows_sum") == 3 * 2 + 2 * 1
        assert read(generator, "carrara_tick_rows_bucket", le="1.0") == 2
        assert outcomes(generator) == {"finished": 2}
        assert read(generator, "carrara_queue_wait_seconds_count") == 2
        assert read(generator, "carrara_job_running_seconds_count") == 2
        running = read(generator, "carrara_job_running_seconds_sum")
        told = sum(result.usage.running_ms for result in results) / 1e3
        assert told <= running < told + 2
        assert 0 < read(generator, "carrara_tick_seconds_sum") < running + 2

        await asyncio.gather(*(generate(generator, but(job, steps=n)) for n in (2, 4, 6)))
        await until_equal(lambda: read(generator, "carrara_tick_rows_sum"), 8 + 12)
        assert read(generator, "carrara_steps_total") == 5 + 12
        # Between all three in one batch all the time and none ever.
        assert 5 + 6 <= read(generator, "carrara_tick_seconds_count") <= 5 + 12


async def test_a_queue_of_known_depth_and_how_each_of_its_jobs_ends(
    sd1: Path, job: stage_pb2.Job, monkeypatch: pytest.MonkeyPatch
):
    async with served("generator", sd1, max_batch_rows=1, max_queue_jobs=3) as generator:
        with held(monkeypatch, LatentUNet, "predict") as called:
            running = call(generator, job)
            await anext(aiter(running))
            await was_called(called)
            waiting = [call(generator, job), call(generator, job)]
            expiring = call(generator, job, timeout=3)
            for each in (*waiting, expiring):
                await anext(aiter(each))
            load = (await generator.describe()).load
            assert read(generator, "carrara_jobs", state="queued") == load.jobs_queued == 3
            assert read(generator, "carrara_jobs", state="running") == load.jobs_running == 1
            assert read(generator, "carrara_batch_rows") == load.rows == 1
            assert read(generator, "carrara_max_batch_rows") == load.max_batch_rows == 1
            assert read(generator, "carrara_max_queue_jobs") == load.max_queue_jobs == 3
            assert read(generator, "carrara_queue_wait_seconds_count") == 1
            assert outcomes(generator) == {}

            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await events(call(generator, job))
            assert refusal(caught.value).reason == "QUEUE_FULL"
            await until_equal(lambda: refusals(generator), {"QUEUE_FULL": 1})
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await events(expiring)
            assert refusal(caught.value).reason == "DEADLINE"
            assert outcomes(generator) == {"expired": 1}
            waiting[1].cancel()
            await until_equal(lambda: outcomes(generator), {"expired": 1, "cancelled": 1})
            assert read(generator, "carrara_jobs", state="queued") == 1
            assert read(generator, "carrara_queue_wait_seconds_count") == 1
            assert read(generator, "carrara_job_running_seconds_count") == 0
        await events(running)
        await events(waiting[0])
        await until_equal(
            lambda: outcomes(generator), {"expired": 1, "cancelled": 1, "finished": 2}
        )
        assert read(generator, "carrara_queue_wait_seconds_count") == 2
        assert read(generator, "carrara_queue_wait_seconds_sum") > 2, "the deadline was 3 s"
        assert read(generator, "carrara_job_running_seconds_count") == 2
        for state in ("queued", "running"):
            assert read(generator, "carrara_jobs", state=state) == 0
        codes = by_label(generator, "carrara_calls_total", "code")
        assert codes == {"OK": 3, "DEADLINE_EXCEEDED": 1, "CANCELLED": 1, "RESOURCE_EXHAUSTED": 1}


@pytest.mark.parametrize("outcome", ["cancelled", "expired"])
async def test_a_running_job_that_is_given_up_is_counted_when_its_row_is_free(
    sd1: Path, job: stage_pb2.Job, monkeypatch: pytest.MonkeyPatch, outcome: str
):
    async with served("generator", sd1) as generator:
        with held(monkeypatch, LatentUNet, "predict") as called:
            timeout = {"timeout": 3} if outcome == "expired" else {}
            given_up = call(generator, but(job, steps=50), **timeout)
            await anext(aiter(given_up))
            await was_called(called)
            if outcome == "cancelled":
                given_up.cancel()
            else:
                with pytest.raises(grpc.aio.AioRpcError):
                    await events(given_up)
            await until(
                lambda: (
                    read(
                        generator,
                        "carrara_calls_total",
                        method=GENERATE,
                        code="CANCELLED" if outcome == "cancelled" else "DEADLINE_EXCEEDED",
                    )
                    == 1
                )
            )
            assert outcomes(generator) == {}, "the network still has its row"
            assert read(generator, "carrara_batch_rows") == 1
        await until_equal(lambda: outcomes(generator), {outcome: 1})
        assert read(generator, "carrara_batch_rows") == 0
        assert read(generator, "carrara_job_running_seconds_count") == 1
        assert read(generator, "carrara_steps_total") == 1


async def test_a_text_is_a_job_that_ends_with_the_last_that_waits_for_it(
    sd1: Path, monkeypatch: pytest.MonkeyPatch
):
    async with served("text-encoder", sd1) as text_encoder:

        def encoding(text: str, **options: object):
            return text_encoder.stub.Encode(text_encoder_pb2.EncodeRequest(prompt=text), **options)

        with held(monkeypatch, ClipTextEncoder, "encode") as called:
            patient, hasty = encoding("red"), encoding("red", timeout=3)
            running = asyncio.gather(patient)
            # Only then the others: the worker must have taken this text and none of theirs.
            await was_called(called)
            expired, cancelled = encoding("white", timeout=3), encoding("blue")
            await until(lambda: read(text_encoder, "carrara_jobs", state="queued") == 2)
            cancelled.cancel()
            for call in (hasty, expired):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert refusal(caught.value).reason == "DEADLINE"
            await until_equal(lambda: outcomes(text_encoder), {"expired": 1, "cancelled": 1})
            assert read(text_encoder, "carrara_jobs", state="running") == 1
        await running
        assert outcomes(text_encoder) == {"expired": 1, "cancelled": 1, "finished": 1}
        await until_equal(lambda: refusals(text_encoder), {"DEADLINE": 2})


def _unknown(job: stage_pb2.Job) -> None:
    job.MergeFromString(b"\xf8\x3f\x01")  # field 1023, a varint


def _no_steps(job: stage_pb2.Job) -> None:
    job.arguments.num_inference_steps = 0


def _short_state(job: stage_pb2.Job) -> None:
    job.random_state.torch_cpu = b"123"


def _other_space(job: stage_pb2.Job) -> None:
    job.conditioning.contract.space = "f00d"


def _other_weights(job: stage_pb2.Job) -> None:
    job.stage_fingerprint = "f00d"


def _overflow(job: stage_pb2.Job) -> None:
    for tensor in job.conditioning.tensors.values():
        tensor.CopyFrom(from_numpy(np.full(tuple(tensor.shape), 3e38, dtype=np.float32)))


REFUSED = {
    "UNKNOWN_FIELD": _unknown,
    "BAD_FIELD": _no_steps,
    "STATE": _short_state,
    "CONTRACT": _other_space,
    "FINGERPRINT": _other_weights,
    "NUMERICAL": _overflow,
}


async def test_each_refusal_is_counted_under_the_reason_that_its_caller_is_told(
    sd1: Path, job: stage_pb2.Job, monkeypatch: pytest.MonkeyPatch
):
    async with served("generator", sd1) as generator:
        expected = {}
        for count, (reason, change) in enumerate(REFUSED.items(), start=1):
            for _ in range(count):
                changed = but(job, guided=True)
                change(changed)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await events(call(generator, changed))
                assert refusal(caught.value).reason == reason
            expected[reason] = count
        with monkeypatch.context() as patch:
            patch.delattr(LatentUNet, "finish")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await events(call(generator, job))
        assert refusal(caught.value).reason == "INTERNAL"
        expected["INTERNAL"] = 1
        await until_equal(lambda: refusals(generator), expected)
        # What was refused before it took a place in the line is no job.
        assert outcomes(generator) == {"failed": expected["NUMERICAL"] + 1}
        codes = by_label(generator, "carrara_calls_total", "code")
        assert codes == {
            "INVALID_ARGUMENT": 1 + 2 + 3,
            "FAILED_PRECONDITION": 4 + 5,
            "INTERNAL": 6 + 1,
        }


async def test_a_stage_told_to_end_says_so_at_once_and_hands_back_what_waits(
    sd1: Path, job: stage_pb2.Job, monkeypatch: pytest.MonkeyPatch
):
    settings = {"max_batch_rows": 1, "drain_pause_seconds": 2}
    async with served("generator", sd1, **settings) as generator:
        assert read(generator, "carrara_serving") == 1
        with held(monkeypatch, LatentUNet, "predict") as called:
            running = call(generator, job)
            await anext(aiter(running))
            await was_called(called)
            waiting = call(generator, job)
            await anext(aiter(waiting))
            ending = asyncio.ensure_future(generator.server.drain())
            await until(lambda: read(generator, "carrara_serving") == 0)
            assert not (await generator.describe()).load.draining, "the pause is not over"
            with pytest.raises(grpc.aio.AioRpcError):
                await events(waiting)
            assert outcomes(generator) == {"handed_back": 1}
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await events(call(generator, job))
            assert refusal(caught.value).reason == "DRAINING"
            await until_equal(lambda: refusals(generator), {"DRAINING": 2})
            assert read(generator, "carrara_serving") == 0
        await events(running)
        await ending
        assert outcomes(generator) == {"handed_back": 1, "finished": 1}


async def test_the_serving_gauge_says_what_the_health_says_of_a_worker_that_hangs(
    sd1: Path, monkeypatch: pytest.MonkeyPatch
):
    async with served("text-encoder", sd1) as text_encoder:
        with held(monkeypatch, ClipTextEncoder, "encode") as called:
            text = asyncio.ensure_future(encode(text_encoder, "red"))
            await was_called(called)
            await until(lambda: read(text_encoder, "carrara_serving") == 0)
            assert not text.done()
        await text
        await until(lambda: read(text_encoder, "carrara_serving") == 1)


async def test_the_cache_is_counted_by_texts_and_bytes(sd1: Path):
    async with served("text-encoder", sd1) as text_encoder:
        requests = [("red", "blue"), ("red", "white"), ("blue", "blue"), ("red", None)]
        results = [await encode(text_encoder, *texts) for texts in requests]
        kept: dict[tuple[str, str], int] = {}
        for texts, result in zip(requests, results, strict=True):
            for field, text in zip(("prompt", "negative_prompt"), texts, strict=True):
                if text is not None:
                    data = result.conditioning.tensors[f"{field}_embeds"].data
                    kept[field, text] = len(text.encode()) + len(data)
        assert len(kept) == 4
        hits = sum(result.usage.cache_hits for result in results)
        assert hits == 3
        assert read(text_encoder, "carrara_cache_hits_total") == hits
        assert read(text_encoder, "carrara_cache_misses_total") == 4
        assert read(text_encoder, "carrara_cache_texts") == len(kept)
        assert read(text_encoder, "carrara_cache_bytes") == sum(kept.values())

        await asyncio.gather(*(encode(text_encoder, "circle on circle") for _ in range(8)))
        assert read(text_encoder, "carrara_cache_misses_total") == 5
        assert read(text_encoder, "carrara_cache_hits_total") == hits + 7
        assert outcomes(text_encoder) == {"finished": 5}


async def bytes_of(stage: Served, method: str) -> tuple[float, float]:
    names = ("carrara_received_bytes_total", "carrara_sent_bytes_total")
    return tuple(read(stage, name, method=method) for name in names)


async def test_bytes_are_those_of_the_messages_in_both_directions(sd1: Path, job: stage_pb2.Job):
    async with (
        served("text-encoder", sd1) as text_encoder,
        served("generator", sd1) as generator,
        served("decoder", sd1) as decoder,
    ):
        request = text_encoder_pb2.EncodeRequest(prompt="a red circle", guidance=True)
        response = await text_encoder.stub.Encode(request)
        assert await bytes_of(text_encoder, ENCODE) == (request.ByteSize(), response.ByteSize())

        request = generator_pb2.GenerateRequest(job=but(job, steps=4))
        responses = [each async for each in generator.stub.Generate(request)]
        assert len(responses) == 1 + 4 + 1
        sent = sum(each.ByteSize() for each in responses)
        assert await bytes_of(generator, GENERATE) == (request.ByteSize(), sent)

        sample = responses[-1].event.result.sample
        request = decoder_pb2.DecodeRequest(job=stage_pb2.Job(sample=sample))
        responses = [each async for each in decoder.stub.Decode(request)]
        sent = sum(each.ByteSize() for each in responses)
        assert await bytes_of(decoder, DECODE) == (request.ByteSize(), sent)

        described = await decoder.describe()
        assert await bytes_of(decoder, DESCRIBE) == (0, described.ByteSize())

        garbage = generator.channel.unary_stream(GENERATE)(b"\x0a\xff\xff")
        before, _ = await bytes_of(generator, GENERATE)
        with pytest.raises(grpc.aio.AioRpcError):
            await events(garbage)
        await until_equal(
            lambda: read(generator, "carrara_received_bytes_total", method=GENERATE), before + 3
        )


async def test_a_caller_cannot_make_a_series(sd1: Path):
    async with served("decoder", sd1) as decoder:
        for method in ("/carrara.v1.DecoderService/Nope", "/carrara.v1.Nope/Decode", "/x/y"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await decoder.channel.unary_unary(method)(b"")
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        await decoder.describe()
        assert by_label(decoder, "carrara_calls_total", "method") == {DESCRIBE: 1}


def test_resident_memory_is_what_the_kernel_says():
    metrics = Metrics()
    told = metrics.registry.get_sample_value("process_resident_memory_bytes")
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    assert told == pytest.approx(int(status["VmRSS"].split()[0]) * 1024, rel=0.1)
    for name in ("process_open_fds", "process_cpu_seconds_total", "process_start_time_seconds"):
        assert metrics.registry.get_sample_value(name) > 0


def fetch(address: str, **headers: str) -> tuple[str, str]:
    """One scrape: its content type and its text."""
    request = urllib.request.Request(f"http://{address}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


async def test_metrics_are_answered_while_the_stage_still_loads(sd1: Path):
    scraped = []
    settings = read_settings(
        {"checkpoint": str(sd1), "bind": "127.0.0.1:0", "metrics_bind": "127.0.0.1:0"}
    )
    server = StageServer("decoder", settings)

    def open_stage(settings):
        scraped.append(fetch(server.metrics_address)[1])
        return OPENERS["decoder"](settings)

    try:
        await server.start(open_stage)
        scraped.append((await asyncio.to_thread(fetch, server.metrics_address))[1])
    finally:
        await server.close()
    assert "carrara_serving 0.0\n" in scraped[0]
    assert "carrara_serving 1.0\n" in scraped[1]
    with pytest.raises(urllib.error.URLError):
        fetch(server.metrics_address)


def test_without_an_address_nothing_listens(sd1: Path):
    async def serve() -> str | None:
        async with served("decoder", sd1) as decoder:
            return decoder.server.metrics_address

    assert asyncio.run(serve()) is None


def test_prometheus_scrapes_a_process_until_it_has_ended(sd1: Path):
    flags = ("--metrics-bind", "127.0.0.1:0", "--drain-pause-seconds", "6")
    with starting("text-encoder", checkpoint=sd1, flags=flags) as stage:
        line = stage.process.stdout.readline()
        assert line, stage.log
        ready = json.loads(line)
        assert set(ready) == {"role", "address", "metrics"}
        with grpc.insecure_channel(ready["address"]) as channel:
            stub = text_encoder_pb2_grpc.TextEncoderServiceStub(channel)
            request = text_encoder_pb2.EncodeRequest(prompt="red")
            response = stub.Encode(request, timeout=20)

        kind, text = fetch(ready["metrics"])
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert "carrara_jobs" in families
        assert "process_resident_memory_bytes" in families
        for family in families.values():
            assert family.documentation, family.name
            assert family.type != "unknown", family.name
            assert {family.name, f"{family.name}_total"} & names, family.name
        [sample] = families["carrara_sent_bytes"].samples[:1]
        assert (sample.labels, sample.value) == ({"method": ENCODE}, response.ByteSize())
        [serving] = families["carrara_serving"].samples
        assert serving.value == 1

        # As Prometheus itself asks.
        kind, text = fetch(ready["metrics"], Accept="application/openmetrics-text;version=1.0.0")
        assert kind.startswith("application/openmetrics-text; version=1.0.0")
        parsed = list(parse_openmetrics(text))
        assert {family.name for family in parsed} >= {"carrara_jobs", "carrara_stage"}

        stage.process.send_signal(signal.SIGTERM)
        draining = "carrara_serving 0.0\n"
        while draining not in (text := fetch(ready["metrics"])[1]):
            assert stage.process.poll() is None
        assert "carrara_jobs_ended_total" in text
        assert stage.process.wait(30) == 0
        with pytest.raises(urllib.error.URLError):
            fetch(ready["metrics"])


def test_the_ready_line_is_as_ever_without_metrics(sd1: Path):
    with starting("decoder", checkpoint=sd1) as stage:
        assert set(json.loads(stage.process.stdout.readline())) == {"role", "address"}


@contextmanager
def taken_address() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize(
    ("bind", "words"),
    [
        (None, "in use"),
        ("unix:/tmp/metrics", "HOST:PORT"),
        ("nonsense", "HOST:PORT"),
        ("0.0.0.0:0", "--insecure"),
    ],
)
def test_an_address_that_cannot_be_is_one_line_and_status_2(
    sd1: Path, bind: str | None, words: str
):
    with taken_address() as taken:
        command = [sys.executable, "-m", "carrara_services.decoder", "--checkpoint", str(sd1)]
        ended = subprocess.run(
            [*command, "--bind", "127.0.0.1:0"],
            env={**os.environ, "CARRARA_METRICS_BIND": bind or taken},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert f"--metrics-bind {bind or taken}: " in line
    assert words in line.lower() or words in line


def test_stages_in_one_process_do_not_quarrel_about_one_address(
    sd1: Path, monkeypatch: pytest.MonkeyPatch
):
    with taken_address() as taken:
        monkeypatch.setenv("CARRARA_METRICS_BIND", taken)
        stages = embedded.start(checkpoints=[str(sd1)], num_threads=1)
        try:
            for addresses in (stages.text_encoders, stages.generators, stages.decoders):
                with grpc.insecure_channel(addresses[0]) as channel:
                    stub = stage_pb2_grpc.StageServiceStub(channel)
                    assert stub.Describe(stage_pb2.DescribeRequest(), timeout=20).role
        finally:
            stages.close()
