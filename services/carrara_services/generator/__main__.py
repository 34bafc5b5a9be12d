"""`python -m carrara_services.generator`: the wiring of the generator's stage."""

from __future__ import annotations

import grpc

from carrara.v1 import generator_pb2, generator_pb2_grpc
from carrara_models.checkpoints import open_checkpoint, stage_of_role
from carrara_services.generator import ROLE
from carrara_services.serving import limits
from carrara_services.serving.app import Stage
from carrara_services.serving.command_line import run_stage
from carrara_services.serving.metrics import Metrics
from carrara_services.serving.settings import Settings


def open_stage(settings: Settings) -> Stage:
    """Loads a generator and puts its engine behind its servicer."""
    stage = settings.stage or stage_of_role(settings.checkpoint, ROLE)
    checkpoint = open_checkpoint(settings.checkpoint, stage=stage)
    # Here, not above: torch takes seconds, and what is wrong with a flag is told without it.
    from carrara_services import torch_runtime
    from carrara_services.denoising.engine import DenoisingEngine
    from carrara_services.generator.servicer import GeneratorServicer
    from carrara_services.jobs import Jobs

    part, runtime = torch_runtime.load(checkpoint, settings=settings, role=ROLE)
    engine = DenoisingEngine(
        part,
        role=ROLE,
        max_queue_jobs=settings.max_queue_jobs,
        max_queue_seconds=settings.max_queue_seconds,
        max_batch_rows=settings.max_batch_rows or limits.MAX_BATCH_ROWS,
        progress_interval_seconds=settings.progress_interval_ms / 1e3,
        memory=torch_runtime.memory_to_fit(settings, device=part.device),
    )
    loop = engine.loop
    servicer = GeneratorServicer(
        Jobs(engine, role=ROLE, runtime=runtime, also_accepts=settings.also_accepts)
    )

    def register(server: grpc.aio.Server) -> None:
        generator_pb2_grpc.add_GeneratorServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]

    def watch(metrics: Metrics) -> None:
        loop.watch = metrics.watch_batch(
            rows=lambda: loop.rows, max_batch_rows=lambda: loop.max_batch_rows
        )

    return Stage(
        role=ROLE,
        service=generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"].full_name,
        register=register,
        part=part,
        runtime=runtime,
        warm_up=engine.warm_up,
        line=engine.line,
        rows=lambda: engine.rows,
        max_batch_rows=lambda: engine.max_batch_rows,
        resumable=engine.resumable,
        hand_back=engine.hand_back,
        close=engine.close,
        watch=watch,
    )


if __name__ == "__main__":
    run_stage(ROLE, open_stage)
