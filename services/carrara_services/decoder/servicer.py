"""The decoder's messages; what a job is stands in `carrara_services.jobs`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from carrara.v1 import decoder_pb2, decoder_pb2_grpc
from carrara_services.jobs import Jobs
from carrara_services.serving.interceptors import deadline_of


class DecoderServicer(decoder_pb2_grpc.DecoderServiceServicer):
    """Answers Decode."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def Decode(
        self, request: decoder_pb2.DecodeRequest, context: Any
    ) -> AsyncIterator[decoder_pb2.DecodeResponse]:
        """Decodes one image: events while it waits and runs, then what came of it."""
        work = self._jobs.run(request, request.job, deadline=deadline_of(context))
        async with contextlib.aclosing(work) as events:  # type: ignore[type-var]
            async for event in events:
                yield decoder_pb2.DecodeResponse(event=event)
