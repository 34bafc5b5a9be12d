"""The decoder's messages: from a request to the engine's work, and from its picture to events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from carrara import tensors
from carrara.v1 import decoder_pb2, decoder_pb2_grpc, stage_pb2
from carrara_models.errors import BadFieldError
from carrara_models.limits import MAX_PIXELS
from carrara_models.parts import Sample
from carrara_services.admission import Finished
from carrara_services.decoder import ROLE
from carrara_services.decoder.engine import DecodedImage, DecoderEngine, DecodeWork
from carrara_services.serving import describe, results, validation
from carrara_services.serving.describe import Runtime
from carrara_services.serving.interceptors import deadline_of
from carrara_services.torch_tensors import to_torch

_FORMATS = {
    stage_pb2.OUTPUT_FORMAT_UNSPECIFIED: "image",
    stage_pb2.OUTPUT_FORMAT_UINT8: "image",
    stage_pb2.OUTPUT_FORMAT_PNG: "png",
}


class DecoderServicer(decoder_pb2_grpc.DecoderServiceServicer):
    """Answers Decode."""

    def __init__(self, engine: DecoderEngine, *, runtime: Runtime) -> None:
        self._engine = engine
        self._provenance = describe.provenance(engine.part, runtime=runtime)
        self._port = describe.port(engine.part.consumes[0])

    async def Decode(
        self, request: decoder_pb2.DecodeRequest, context: Any
    ) -> AsyncIterator[decoder_pb2.DecodeResponse]:
        """Decodes one image: events while it waits, then the picture."""
        validation.refuse_unknown_fields(request)
        job = request.job
        warnings = self._check(job)
        work = self._engine.decode(_read(job), deadline=deadline_of(context))
        async with contextlib.aclosing(work) as happenings:  # type: ignore[type-var]
            async for happening in happenings:
                if isinstance(happening, Finished):
                    event = self._finished(happening, request, warnings)
                else:
                    event = results.under_way(happening)
                yield decoder_pb2.DecodeResponse(event=event)

    def _check(self, job: stage_pb2.Job) -> list[stage_pb2.Warning]:
        """Refuses work that cannot be done right, before it takes a place in the line."""
        part = self._engine.part
        validation.check_fingerprint(job.stage_fingerprint, have=part.fingerprint)
        validation.check_arguments(job.arguments, known=part.arguments)
        if job.output_format not in _FORMATS:
            names = ", ".join(stage_pb2.OutputFormat.Name(value) for value in _FORMATS)
            raise BadFieldError("job.output_format", job.output_format, names)
        if job.HasField("conditioning"):
            raise BadFieldError("job.conditioning", "tensors", "nothing; this decoder takes none")
        if not job.HasField("sample"):
            raise BadFieldError("job.sample", None, "what a generator has made")
        sample = job.sample
        warnings = validation.check_payload(
            sample.contract, sample.tensors, port=self._port, field="job.sample", stage=ROLE
        )
        self._check_size(sample)
        return warnings

    def _check_size(self, sample: stage_pb2.Sample) -> None:
        factor = self._port.contract.size_factor
        *_, h, w = sample.tensors["latents"].shape
        height, width = h * factor, w * factor
        if height * width > MAX_PIXELS:
            allowed = f"up to {MAX_PIXELS} pixels; this makes {height * width}"
            raise BadFieldError("job.sample.tensors[latents]", f"shape [..., {h}, {w}]", allowed)
        for name, given, meant in (
            ("height", sample.height, height),
            ("width", sample.width, width),
        ):
            if given != meant:
                allowed = f"{meant}, which is what the latents stand for"
                raise BadFieldError(f"job.sample.{name}", given, allowed)

    def _finished(
        self,
        finished: Finished,
        request: decoder_pb2.DecodeRequest,
        warnings: list[stage_pb2.Warning],
    ) -> stage_pb2.Event:
        part = self._engine.part
        image: DecodedImage = finished.result
        name = _FORMATS[request.job.output_format]
        message = stage_pb2.Sample(
            contract=describe.contract(part.produces[0], producer=part.fingerprint),
            tensors={name: tensors.from_numpy(image.data)},
            height=image.height,
            width=image.width,
        )
        usage = results.usage(
            finished.usage, bytes_in=request.ByteSize(), bytes_out=message.ByteSize()
        )
        return stage_pb2.Event(
            result=stage_pb2.Result(
                sample=message, usage=usage, provenance=self._provenance, warnings=warnings
            )
        )


def _read(job: stage_pb2.Job) -> DecodeWork:
    sample = Sample(
        tensors={
            name: to_torch(tensor, field=f"job.sample.tensors[{name}]")
            for name, tensor in job.sample.tensors.items()
        },
        height=job.sample.height,
        width=job.sample.width,
    )
    return DecodeWork(sample, png=_FORMATS[job.output_format] == "png")
