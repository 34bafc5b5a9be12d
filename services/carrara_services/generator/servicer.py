"""The generator's messages; what a job is stands in `carrara_services.jobs`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from carrara.v1 import generator_pb2, generator_pb2_grpc
from carrara_services.jobs import Jobs
from carrara_services.serving.interceptors import deadline_of


class GeneratorServicer(generator_pb2_grpc.GeneratorServiceServicer):
    """Answers Generate."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def Generate(
        self, request: generator_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[generator_pb2.GenerateResponse]:
        """Runs one job: events while it waits and runs, then its sample."""
        work = self._jobs.run(request, request.job, deadline=deadline_of(context))
        async with contextlib.aclosing(work) as events:  # type: ignore[type-var]
            async for event in events:
                yield generator_pb2.GenerateResponse(event=event)
