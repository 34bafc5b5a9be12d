"""The text encoder's messages: from a request's texts to conditioning."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from carrara.v1 import stage_pb2, text_encoder_pb2, text_encoder_pb2_grpc
from carrara_models.contracts import Argument
from carrara_models.errors import BadFieldError
from carrara_models.parts import Texts
from carrara_services.admission.happenings import Usage
from carrara_services.serving import describe, results, validation
from carrara_services.serving.describe import Runtime
from carrara_services.serving.interceptors import deadline_of
from carrara_services.text_encoder.engine import EncodedText, TextEncoderEngine
from carrara_services.torch_tensors import from_torch


class TextEncoderServicer(text_encoder_pb2_grpc.TextEncoderServiceServicer):
    """Answers Encode."""

    def __init__(self, engine: TextEncoderEngine, *, runtime: Runtime) -> None:
        self._engine = engine
        self._provenance = describe.provenance(engine.part, runtime=runtime)

    async def Encode(
        self, request: text_encoder_pb2.EncodeRequest, context: Any
    ) -> text_encoder_pb2.EncodeResponse:
        """Encodes a prompt and, where guidance is asked for, its negative half."""
        validation.refuse_unknown_fields(request)
        part = self._engine.part
        validation.check_fingerprint(request.stage_fingerprint, have=part.fingerprint)
        deadline = deadline_of(context)
        priority = validation.read_priority(request.priority, field="priority")
        texts = await _all(
            self._engine.encode(piece, deadline=deadline, priority=priority)
            for piece in part.split(_texts(request, known=part.arguments))
        )
        conditioning = stage_pb2.Conditioning(
            contract=describe.contract(part.produces[0], producer=part.fingerprint),
            tensors={
                name: from_torch(tensor)
                for text in texts
                for name, tensor in text.encoded.tensors.items()
            },
        )
        result = stage_pb2.Result(
            conditioning=conditioning,
            usage=results.usage(
                _sum(texts),
                cache_hits=sum(text.cached for text in texts),
                bytes_in=request.ByteSize(),
                bytes_out=conditioning.ByteSize(),
            ),
            provenance=self._provenance,
            warnings=[
                stage_pb2.Warning(
                    code=stage_pb2.WARNING_CODE_PROMPT_TRUNCATED,
                    message=f"{field} is too long for this text encoder; not seen: {words}",
                    field=field,
                    detail=words,
                )
                for text in texts
                for field, words in text.encoded.truncated.items()
            ],
        )
        return text_encoder_pb2.EncodeResponse(result=result)


_NOT_TEXTS = frozenset({"stage_fingerprint", "guidance", "priority"})


def _texts(request: text_encoder_pb2.EncodeRequest, *, known: Sequence[Argument]) -> Texts:
    """What is to be encoded; each text and option held to what this encoder takes."""
    if not request.HasField("prompt"):
        raise BadFieldError("prompt", None, 'a text; "" is encoded as given')
    given: dict[str, Any] = {
        field.name: value for field, value in request.ListFields() if field.name not in _NOT_TEXTS
    }
    # A present but empty text is no default value: ListFields has it, as presence is tracked.
    validation.check_values(given, known=known)
    for name, value in given.items():
        if isinstance(value, str):
            validation.check_text(value, field=name)
    return Texts(**given, negative=request.guidance)


async def _all(encodings: Any) -> list[EncodedText]:
    """Waits for all; the first error cancels the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(encoding) for encoding in encodings]
    except ExceptionGroup as errors:  # `except*` would wrap it again in Python before 3.11.4
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _sum(texts: list[EncodedText]) -> Usage:
    """The halves run one after the other but wait at the same time: the longest wait counts."""
    return Usage(
        queue_ms=max(text.usage.queue_ms for text in texts),
        running_ms=sum(text.usage.running_ms for text in texts),
        compute_ms=sum(text.usage.compute_ms for text in texts),
    )
