"""Three toy stages on real gRPC servers: deterministic, without torch, failing where a test wants.

The picture is the SHA-256 of what the stages were given, so that each argument, seed and tensor
that travels shows in it. The encoder is fed with texts, the generator draws from the seed, and the
decoder from the random state that the generator hands on.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from carrara.tensors import from_numpy, to_numpy
from carrara.v1 import (
    decoder_pb2,
    decoder_pb2_grpc,
    generator_pb2,
    generator_pb2_grpc,
    stage_pb2,
    stage_pb2_grpc,
    text_encoder_pb2,
    text_encoder_pb2_grpc,
)
from carrara.v1.tensor_pb2 import DATA_TYPE_FLOAT32, TensorSpec

SCHEDULERS = ["ddim", "euler"]
SIZE_FACTOR = 8
MAX_PROMPT_BYTES = 100
SERVICES = {
    "text-encoder": "carrara.v1.TextEncoderService",
    "generator": "carrara.v1.GeneratorService",
    "decoder": "carrara.v1.DecoderService",
}


@dataclass(frozen=True)
class Fault:
    """An answer in place of the result.

    Attributes:
        after_step: Sent only once so many steps were reported; 0 for at once.
    """

    code: grpc.StatusCode
    message: str = "a fault of the test"
    details: tuple[Message, ...] = ()
    after_step: int = 0


def fault_details(
    reason: str = "",
    *,
    retry_after_seconds: int = 0,
    field: str = "",
    step: str = "",
    limit: str = "",
) -> tuple[Message, ...]:
    """Error details as the services send them."""
    told = {"stage": "generator", "step": step, "limit": limit}
    metadata = {name: value for name, value in told.items() if value}
    info = error_details_pb2.ErrorInfo(reason=reason, domain="carrara", metadata=metadata)
    found: list[Message] = [info, error_details_pb2.RequestInfo(request_id="the-stage-s-own-id")]
    if retry_after_seconds:
        delay = duration_pb2.Duration(seconds=retry_after_seconds)
        found.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=field, description="7 is not allowed; allowed: 8 to 16"
        )
        found.append(error_details_pb2.BadRequest(field_violations=[violation]))
    return tuple(found)


@dataclass
class ToyStage:
    """One stage: what it says of itself, what it was asked, and how it fails.

    Attributes:
        faults: Taken one by one, each by the next call.
        step_seconds: How long a step takes.
        cancelled: How many calls were cancelled while they ran.
        most_at_once: The largest number of calls that ran together.
    """

    role: str
    description: stage_pb2.DescribeResponse
    requests: list[Message] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    remaining_seconds: list[float] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[stage_pb2.Warning] = field(default_factory=list)
    step_seconds: float = 0.0
    send_result: bool = True
    serving: bool = True
    cancelled: int = 0
    running: int = 0
    most_at_once: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    address: str = ""

    async def begin(self, request: Message, context: grpc.aio.ServicerContext) -> Fault | None:
        self.requests.append(request)
        metadata = dict(context.invocation_metadata() or ())
        self.request_ids.append(str(metadata.get("x-request-id")))
        self.remaining_seconds.append(context.time_remaining())
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None and not fault.after_step:
            await fail(context, fault)
        return fault

    def result(self, **output: Message) -> stage_pb2.Result:
        return stage_pb2.Result(
            usage=stage_pb2.Usage(queue_ms=1.5, running_ms=4, compute_ms=2.5, steps=3, rows=6),
            provenance=stage_pb2.Provenance(
                stage_fingerprint=self.description.fingerprint,
                numerics=stage_pb2.NUMERICS_EXACT,
                engine="toy",
                precision=DATA_TYPE_FLOAT32,
                device="none",
                num_threads=1,
                versions={"carrara": "0"},
            ),
            warnings=self.warnings,
            **output,  # type: ignore[arg-type]
        )


async def fail(context: grpc.aio.ServicerContext, fault: Fault) -> None:
    if not fault.details:
        await context.abort(fault.code, fault.message)
    packed = []
    for detail in fault.details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    code = code_pb2.Code.Value(fault.code.name)
    status = status_pb2.Status(code=code, message=fault.message, details=packed)
    await context.abort_with_status(rpc_status.to_status(status))


class _Describe(stage_pb2_grpc.StageServiceServicer):
    def __init__(self, toy: ToyStage) -> None:
        self.toy = toy

    async def Describe(
        self, request: stage_pb2.DescribeRequest, context: grpc.aio.ServicerContext
    ) -> stage_pb2.DescribeResponse:
        return self.toy.description


class _Health(health_pb2_grpc.HealthServicer):
    """Of the whole server (the empty name) and of the services named, which share one status."""

    def __init__(self, toy: ToyStage, *, services: Collection[str]) -> None:
        self.toy, self.names = toy, {"", *services}

    def status(self, service: str) -> str:
        if service not in self.names:
            return "SERVICE_UNKNOWN"
        return "SERVING" if self.toy.serving else "NOT_SERVING"

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=self.status(request.service))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told = ""
        while True:
            if (status := self.status(request.service)) != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(0.02)


class _Encoder(text_encoder_pb2_grpc.TextEncoderServiceServicer):
    def __init__(self, toy: ToyStage) -> None:
        self.toy = toy

    async def Encode(
        self, request: text_encoder_pb2.EncodeRequest, context: grpc.aio.ServicerContext
    ) -> text_encoder_pb2.EncodeResponse:
        await self.toy.begin(request, context)
        texts = {"prompt_embeds": request.prompt}
        if request.guidance:
            texts["negative_prompt_embeds"] = request.negative_prompt
        conditioning = stage_pb2.Conditioning(
            contract=self.toy.description.produces[0],
            tensors={
                name: from_numpy(_floats(text.encode(), 8).reshape(1, 2, 4))
                for name, text in texts.items()
            },
        )
        return text_encoder_pb2.EncodeResponse(result=self.toy.result(conditioning=conditioning))


class _Generator(generator_pb2_grpc.GeneratorServiceServicer):
    def __init__(self, toy: ToyStage) -> None:
        self.toy = toy

    async def Generate(
        self, request: generator_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[generator_pb2.GenerateResponse]:
        async for event in _events(self.toy, request, request.job, context):
            yield generator_pb2.GenerateResponse(event=event)


class _Decoder(decoder_pb2_grpc.DecoderServiceServicer):
    def __init__(self, toy: ToyStage) -> None:
        self.toy = toy

    async def Decode(
        self, request: decoder_pb2.DecodeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[decoder_pb2.DecodeResponse]:
        async for event in _events(self.toy, request, request.job, context):
            yield decoder_pb2.DecodeResponse(event=event)


async def _events(
    toy: ToyStage, request: Message, job: stage_pb2.Job, context: grpc.aio.ServicerContext
) -> AsyncIterator[stage_pb2.Event]:
    fault = await toy.begin(request, context)
    toy.running += 1
    toy.most_at_once = max(toy.most_at_once, toy.running)
    toy.started.set()
    try:
        yield stage_pb2.Event(queued=stage_pb2.Queued(position=1))
        num_steps = (job.arguments.num_inference_steps or 3) if toy.role == "generator" else 0
        for step in range(1, num_steps + 1):
            await asyncio.sleep(toy.step_seconds)
            yield stage_pb2.Event(progress=stage_pb2.Progress(step=step, num_steps=num_steps))
            if job.preview_interval_steps and step % job.preview_interval_steps == 0:
                image = from_numpy(np.full((2, 2, 3), step % 256, np.uint8))
                yield stage_pb2.Event(preview=stage_pb2.Preview(step=step, image=image))
            if fault is not None and fault.after_step == step:
                await fail(context, fault)
        if toy.role == "decoder":
            await asyncio.sleep(toy.step_seconds)
        yield stage_pb2.Event()  # of a kind that this client does not know
        if toy.send_result:
            make = _latents if toy.role == "generator" else _image
            yield stage_pb2.Event(result=toy.result(sample=make(toy, job)))
    except asyncio.CancelledError:
        toy.cancelled += 1
        raise
    finally:
        toy.running -= 1


def _latents(toy: ToyStage, job: stage_pb2.Job) -> stage_pb2.Sample:
    said = job.arguments.SerializeToString(deterministic=True)
    said += b"".join(t.data for _, t in sorted(job.conditioning.tensors.items()))
    said += str(job.random_state.seed).encode()
    height, width = job.arguments.height or 16, job.arguments.width or 16
    shape = (1, 4, height // SIZE_FACTOR, width // SIZE_FACTOR)
    return stage_pb2.Sample(
        contract=toy.description.produces[0],
        tensors={"latents": from_numpy(_floats(said, int(np.prod(shape))).reshape(shape))},
        random_state=stage_pb2.RandomState(torch_cpu=b"state after " + said[-8:]),
        height=height,
        width=width,
    )


def _image(toy: ToyStage, job: stage_pb2.Job) -> stage_pb2.Sample:
    assert job.output_format == stage_pb2.OUTPUT_FORMAT_UINT8
    said = to_numpy(job.sample.tensors["latents"]).tobytes() + job.sample.random_state.torch_cpu
    height, width = job.sample.height, job.sample.width
    pixels = np.resize(np.frombuffer(hashlib.sha256(said).digest(), np.uint8), height * width * 3)
    return stage_pb2.Sample(
        contract=toy.description.produces[0],
        tensors={"image": from_numpy(pixels.reshape(height, width, 3))},
        height=height,
        width=width,
    )


def _floats(said: bytes, count: int) -> np.ndarray:
    numbers = np.frombuffer(hashlib.sha256(said).digest(), np.uint8).astype(np.float32)
    return np.resize(numbers, count)


def text_encoder(*, space: str = "e" * 64) -> ToyStage:
    return ToyStage(
        "text-encoder",
        stage_pb2.DescribeResponse(
            role=stage_pb2.ROLE_TEXT_ENCODER,
            family="toy",
            fingerprint="1" * 64,
            checkpoint="toy",
            produces=[_conditioning(space)],
            max_prompt_bytes=MAX_PROMPT_BYTES,
            arguments=[
                stage_pb2.Argument(name="prompt"),
                stage_pb2.Argument(name="negative_prompt"),
            ],
        ),
    )


def generator(*, space: str = "e" * 64, vae: str = "d" * 64) -> ToyStage:
    numbers = {
        "num_inference_steps": {"minimum": 1, "maximum": 1000, "default_number": 3},
        "guidance_scale": {"minimum": 0, "maximum": 30, "default_number": 5},
        "height": {"minimum": 8, "maximum": 2048, "default_number": 16, "multiple_of": 8},
        "width": {"minimum": 8, "maximum": 2048, "default_number": 16, "multiple_of": 8},
    }
    return ToyStage(
        "generator",
        stage_pb2.DescribeResponse(
            role=stage_pb2.ROLE_GENERATOR,
            family="toy",
            fingerprint="2" * 64,
            checkpoint="toy",
            consumes=[stage_pb2.Port(contract=_conditioning(space), required=True)],
            produces=[_latents_contract(vae, size_factor=0, scaling_factor=0)],
            max_pixels=64 * 64,
            arguments=[
                *(stage_pb2.Argument(name=name, **limits) for name, limits in numbers.items()),  # type: ignore[arg-type]
                stage_pb2.Argument(name="scheduler", choices=SCHEDULERS),
            ],
            previews=True,
        ),
    )


def decoder(*, vae: str = "d" * 64) -> ToyStage:
    image = stage_pb2.Contract(kind=stage_pb2.KIND_IMAGE, space="rgb")
    latents = _latents_contract(vae, size_factor=SIZE_FACTOR, scaling_factor=0.18215)
    return ToyStage(
        "decoder",
        stage_pb2.DescribeResponse(
            role=stage_pb2.ROLE_DECODER,
            family="toy",
            fingerprint="3" * 64,
            checkpoint="toy",
            consumes=[stage_pb2.Port(contract=latents, required=True)],
            produces=[image],
            max_pixels=64 * 64,
        ),
    )


def _conditioning(space: str) -> stage_pb2.Contract:
    names = {"prompt_embeds": True, "negative_prompt_embeds": False}
    return stage_pb2.Contract(
        kind=stage_pb2.KIND_CONDITIONING,
        space=space,
        tensors=[
            TensorSpec(name=name, shape=[1, 2, 4], required=required)
            for name, required in names.items()
        ],
    )


def _latents_contract(space: str, *, size_factor: int, scaling_factor: float) -> stage_pb2.Contract:
    return stage_pb2.Contract(
        kind=stage_pb2.KIND_LATENTS,
        space=space,
        size_factor=size_factor,
        scaling_factor=scaling_factor,
        tensors=[TensorSpec(name="latents", shape=[1, 4, 0, 0], required=True)],
    )


@asynccontextmanager
async def serving(
    toy: ToyStage,
    *,
    describe: bool = True,
    health: bool = True,
    bind: str = "127.0.0.1:0",
    options: Sequence[tuple[str, int]] = (),
) -> AsyncIterator[ToyStage]:
    """Serves a stage, by default on a free port of the loopback; `address` says which.

    Args:
        describe: Without it, this is no Carrara stage, and its health knows nothing of one.
        options: Of the gRPC server.
    """
    server = grpc.aio.server(options=options)
    if describe:
        stage_pb2_grpc.add_StageServiceServicer_to_server(_Describe(toy), server)
    if health:
        services = [SERVICES[toy.role]] if describe else []
        health_pb2_grpc.add_HealthServicer_to_server(_Health(toy, services=services), server)
    match toy.role:
        case "text-encoder":
            text_encoder_pb2_grpc.add_TextEncoderServiceServicer_to_server(_Encoder(toy), server)
        case "generator":
            generator_pb2_grpc.add_GeneratorServiceServicer_to_server(_Generator(toy), server)
        case "decoder":
            decoder_pb2_grpc.add_DecoderServiceServicer_to_server(_Decoder(toy), server)
    port = server.add_insecure_port(bind)
    toy.address = bind if bind.startswith("unix:") else f"{bind.rpartition(':')[0]}:{port}"
    await server.start()
    try:
        yield toy
    finally:
        await server.stop(None)


@dataclass(frozen=True)
class ToyCascade:
    """One stage of each role, being served."""

    text_encoder: ToyStage
    generator: ToyStage
    decoder: ToyStage

    @property
    def addresses(self) -> dict[str, list[str]]:
        """As `connect` takes them."""
        return {
            "text_encoders": [self.text_encoder.address],
            "generators": [self.generator.address],
            "decoders": [self.decoder.address],
        }


@asynccontextmanager
async def serving_all(
    *toys: ToyStage,
) -> AsyncIterator[ToyCascade]:
    """Serves one stage of each role, those given and standard ones for the others."""
    given = {toy.role: toy for toy in toys}
    stages = [
        given.get("text-encoder") or text_encoder(),
        given.get("generator") or generator(),
        given.get("decoder") or decoder(),
    ]
    async with AsyncExitStack() as stack:
        for toy in stages:
            await stack.enter_async_context(serving(toy))
        yield ToyCascade(*stages)


@contextmanager
def serving_in_a_thread(*toys: ToyStage) -> Iterator[ToyCascade]:
    """Serves one stage of each role from another thread, for tests that have no event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    stages = serving_all(*toys)
    try:
        yield asyncio.run_coroutine_threadsafe(stages.__aenter__(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(stages.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
