"""The SDK and the command line against the real services: pictures, faults and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from carrara import (
    AsyncCascade,
    Cascade,
    ContractError,
    DeadlineError,
    InvalidArgumentError,
    Progress,
    StageUnavailableError,
)
from carrara.cli import run
from carrara.connections import Request, Stage
from carrara.v1 import generator_pb2, generator_pb2_grpc, stage_pb2
from carrara_services.generator.__main__ import open_stage as open_generator
from carrara_services.serving.app import Stage as ServedStage
from carrara_services.serving.app import StageServer
from carrara_services.serving.settings import Settings, read_settings
from integration import processes
from integration.processes import StageProcess, cascade_processes, stage_process, starting
from tiny_checkpoints import build_sd1, build_sd2

SLOW_STEPS = 900
# Five of the client's pings; gRPC's own servers end a connection at the fourth.
PING_SECONDS, SILENT_SECONDS, SILENT_PINGS = 6, 33, 5
_PREFACE_BYTES, _FRAME_HEADER_BYTES = 24, 9  # of HTTP/2
_PING, _ACK = 6, 1


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


@pytest.fixture(scope="module")
def stages(sd1: Path) -> Iterator[processes.Cascade]:
    with cascade_processes(text_encoder=sd1, generator=sd1, decoder=sd1) as stages:
        yield stages


def addresses(stages: processes.Cascade, *generators: StageProcess) -> dict[str, list[str]]:
    """As `connect` takes them; the generators given stand in for the cascade's own."""
    replicas = generators or (stages.generator,)
    return {
        "text_encoders": [stages.text_encoder.address],
        "generators": [",".join(generator.address for generator in replicas)],
        "decoders": [stages.decoder.address],
    }


@pytest.fixture
def cascade(stages: processes.Cascade) -> Iterator[Cascade]:
    with Cascade.connect(**addresses(stages)) as cascade:
        yield cascade


def paint(cascade: Cascade, prompt: str = "large red circle", **settings: object) -> bytes:
    known = {"seed": 7, "num_inference_steps": 3}
    result = cascade.generate(prompt, **(known | settings))  # type: ignore[arg-type]
    return result.images[0].image.tobytes()


def wait_until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "it did not happen"
        time.sleep(0.02)


def load(address: str) -> stage_pb2.Load:
    """What a generator is doing right now."""

    async def ask() -> stage_pb2.Load:
        stage = Stage(address, role="generator")
        try:
            await stage.connect()
            return stage.description.load
        finally:
            await stage.close()

    return asyncio.run(ask())


def test_the_command_line_paints_through_three_processes(
    stages: processes.Cascade, tmp_path: Path, capsys: pytest.CaptureFixture[str], cascade: Cascade
) -> None:
    output = tmp_path / "out.png"
    arguments = ["generate", "large red circle", "-o", str(output), "--seed", "7", "--steps", "3"]
    for stage in (stages.text_encoder, stages.generator, stages.decoder):
        arguments += [f"--{stage.role}", stage.address]
    assert run([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == [{"path": str(output), "seed": 7, "width": 64, "height": 64}]
    assert report["numerics"] == "exact"
    assert [stage["address"] for stage in report["stages"]] == [
        stages.text_encoder.address,
        stages.generator.address,
        stages.decoder.address,
    ]
    assert report["stages"][1]["compute_ms"] > 0
    with Image.open(output) as picture:
        assert picture.text["num_inference_steps"] == "3"  # type: ignore[attr-defined]
        assert picture.tobytes() == paint(cascade)


def test_health_and_info_tell_of_running_stages(
    stages: processes.Cascade, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["health", stages.generator.address]) == 0
    arguments = ["info", "--json"]
    for stage in (stages.text_encoder, stages.generator, stages.decoder):
        arguments += [f"--{stage.role}", stage.address]
    capsys.readouterr()
    assert run(arguments) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["fits"] is True
    names = [{component["name"] for component in s["components"]} for s in described["stages"]]
    assert "unet" in names[1]
    assert "unet" not in names[0] | names[2]


def test_embedded_stages_paint_the_same_bits(
    cascade: Cascade, sd1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARRARA_NUM_THREADS", "1")
    with Cascade.embedded(sd1) as embedded:
        assert paint(embedded, height=40) == paint(cascade, height=40)


def test_a_truncated_prompt_names_the_words_that_were_cut(cascade: Cascade) -> None:
    result = cascade.generate("red " * 100 + "circle", seed=7, num_inference_steps=1)
    (warning,) = result.warnings
    assert warning.code == "PROMPT_TRUNCATED"
    assert warning.field == "prompt"
    assert warning.detail.endswith("circle")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_inference_steps": 0},
        {"num_inference_steps": 1001},
        {"guidance_scale": -1.0},
        {"guidance_scale": 30.5},
        {"guidance_scale": float("nan")},
        {"scheduler": "magic"},
        {"height": 12},
        {"width": 0},
    ],
    ids=str,
)
def test_client_and_stage_refuse_in_the_same_words(
    cascade: Cascade, stages: processes.Cascade, settings: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgumentError) as here:
        cascade.generate("large red circle", **settings)  # type: ignore[arg-type]

    async def ask_the_stage() -> None:
        stage = Stage(stages.generator.address, role="generator")
        job = stage_pb2.Job(
            arguments=stage_pb2.Arguments(**settings),  # type: ignore[arg-type]
            random_state=stage_pb2.RandomState(seed=1),
        )
        try:
            await stage.run(job, request=Request.lasting(20), on_event=lambda _: None)
        finally:
            await stage.close()

    with pytest.raises(InvalidArgumentError) as there:
        asyncio.run(ask_the_stage())
    assert there.value.address == stages.generator.address, "the stage itself refused"
    (ours,), (theirs,) = here.value.field_violations, there.value.field_violations
    assert theirs.field.endswith(ours.field)
    assert theirs.description == ours.description
    assert paint(cascade), "the stage goes on serving"


def test_a_decoder_of_another_checkpoint_is_refused_at_connect(
    stages: processes.Cascade, tmp_path: Path
) -> None:
    with (
        stage_process("decoder", checkpoint=build_sd2(tmp_path / "sd2")) as other,
        pytest.raises(ContractError) as caught,
    ):
        Cascade.connect(**(addresses(stages) | {"decoders": [other.address]}))
    assert f"generator {stages.generator.address}" in str(caught.value)
    assert f"decoder {other.address}" in str(caught.value)


def test_the_deadline_says_stage_and_step(cascade: Cascade, stages: processes.Cascade) -> None:
    with pytest.raises(DeadlineError) as caught:
        cascade.generate("large red circle", num_inference_steps=SLOW_STEPS, timeout_seconds=1.5)
    assert caught.value.role == "generator"
    assert caught.value.step is not None
    assert caught.value.step > 0
    wait_until(lambda: load(stages.generator.address).jobs_running == 0)


async def test_cancelling_frees_the_row_and_leaves_the_neighbour_s_bytes(
    stages: processes.Cascade,
) -> None:
    settings = {"seed": 3, "num_inference_steps": 60}
    async with await AsyncCascade.connect(**addresses(stages)) as cascade:
        alone = await cascade.generate("small blue square", **settings)  # type: ignore[arg-type]
        doomed = cascade.stream("large red circle", num_inference_steps=SLOW_STEPS)
        async for event in doomed:
            if isinstance(event, Progress) and event.role == "generator":
                break
        neighbour = asyncio.create_task(cascade.generate("small blue square", **settings))  # type: ignore[arg-type]
        running = await asyncio.to_thread(load, stages.generator.address)
        assert running.jobs_running + running.jobs_queued >= 1, "there is something to cancel"
        await doomed.aclose()
        together = await neighbour
        assert together.images[0].image.tobytes() == alone.images[0].image.tobytes()
    await asyncio.to_thread(wait_until, lambda: load(stages.generator.address).jobs_running == 0)


@pytest.mark.slow
def test_killing_one_of_two_generators_costs_nothing_and_the_last_is_reported(
    stages: processes.Cascade, sd1: Path
) -> None:
    with ExitStack() as stack:
        first, last = (stack.enter_context(starting("generator", checkpoint=sd1)) for _ in range(2))
        first.wait_until_ready()
        last.wait_until_ready()
        cascade = stack.enter_context(Cascade.connect(**addresses(stages, first, last)))
        alone = {seed: paint(cascade, seed=seed, num_inference_steps=40) for seed in range(6)}
        painted: dict[int, bytes] = {}

        def paint_one(seed: int) -> None:
            painted[seed] = paint(cascade, seed=seed, num_inference_steps=40)

        callers = [threading.Thread(target=paint_one, args=[seed]) for seed in alone]
        for caller in callers:
            caller.start()
        wait_until(lambda: load(first.address).jobs_running > 0)
        first.process.kill()
        first.process.wait()
        for caller in callers:
            caller.join()
        assert first.process.returncode == -9, "it is gone"
        assert painted == alone

        events = cascade.stream("large red circle", num_inference_steps=SLOW_STEPS)
        while not isinstance(event := next(events), Progress) or event.role != "generator":
            pass
        last.process.kill()
        last.process.wait()
        killed = time.monotonic()
        with pytest.raises(StageUnavailableError) as caught:
            list(events)
        assert last.process.returncode == -9, "it is gone"
        assert time.monotonic() - killed < 10, "well before the timeout of 600 s"
        assert caught.value.role == "generator"
        assert caught.value.address in (first.address, last.address)


class _Silent(generator_pb2_grpc.GeneratorServiceServicer):
    async def Generate(
        self, request: generator_pb2.GenerateRequest, context: object
    ) -> AsyncIterator[generator_pb2.GenerateResponse]:
        await asyncio.sleep(SILENT_SECONDS)
        yield generator_pb2.GenerateResponse(event=stage_pb2.Event(result=stage_pb2.Result()))


def open_silent_generator(settings: Settings) -> ServedStage:
    return replace(
        open_generator(settings),
        register=lambda server: generator_pb2_grpc.add_GeneratorServiceServicer_to_server(
            _Silent(), server
        ),
    )


class PingCounter:
    """Forwards connections to a stage, and counts the pings that callers send on them."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self.pings = 0

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_stage, to_stage = await asyncio.open_connection(self._host, self._port)
        answers = asyncio.create_task(self._pass_on(from_stage, writer))
        try:
            to_stage.write(await reader.readexactly(_PREFACE_BYTES))
            while True:
                header = await reader.readexactly(_FRAME_HEADER_BYTES)
                kind, flags = header[3], header[4]
                self.pings += kind == _PING and not flags & _ACK
                payload = await reader.readexactly(int.from_bytes(header[:3], "big"))
                to_stage.write(header + payload)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the caller has gone
        finally:
            to_stage.close()
            await answers

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while received := await reader.read(65536):
                writer.write(received)
        writer.close()


@pytest.mark.slow
async def test_pings_do_not_end_the_connection_of_a_silent_job(
    sd1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carrara.connections.KEEPALIVE_SECONDS", PING_SECONDS)
    settings = read_settings({"checkpoint": str(sd1), "bind": "127.0.0.1:0", "num_threads": 1})
    attempts: list[None] = []
    async with AsyncExitStack() as stack:
        server = StageServer("generator", settings)
        stack.push_async_callback(server.close)
        await server.start(open_silent_generator)
        counter = PingCounter(server.address)
        forwarder = await stack.enter_async_context(
            await asyncio.start_server(counter.forward, "127.0.0.1", 0)
        )
        host, port = forwarder.sockets[0].getsockname()
        stage = Stage(f"{host}:{port}", role="generator")
        stack.push_async_callback(stage.close)
        await stage.connect()
        await stage.run(
            stage_pb2.Job(),
            request=Request.lasting(5 * SILENT_SECONDS),
            on_event=lambda _: None,
            on_attempt=lambda: attempts.append(None),
        )
    assert counter.pings >= SILENT_PINGS, "the stage was pinged often enough to be annoyed"
    assert len(attempts) == 1
