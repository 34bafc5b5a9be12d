"""`python -m carrara_services.decoder`: the wiring of the decoder's stage."""

from __future__ import annotations

import grpc

from carrara.v1 import decoder_pb2, decoder_pb2_grpc
from carrara_models.checkpoints import open_checkpoint, stage_of_role
from carrara_services.decoder import ROLE
from carrara_services.serving import limits
from carrara_services.serving.app import Stage
from carrara_services.serving.command_line import run_stage
from carrara_services.serving.metrics import Metrics
from carrara_services.serving.settings import Settings


def open_stage(settings: Settings) -> Stage:
    """Loads a decoder and puts its engine behind its servicer."""
    stage = settings.stage or stage_of_role(settings.checkpoint, ROLE)
    checkpoint = open_checkpoint(settings.checkpoint, stage=stage)
    # Here, not above: torch takes seconds, and what is wrong with a flag is told without it.
    from carrara_models.parts import Denoiser
    from carrara_services import torch_runtime
    from carrara_services.decoder.engine import DecoderEngine
    from carrara_services.decoder.servicer import DecoderServicer
    from carrara_services.denoising.engine import DenoisingEngine
    from carrara_services.jobs import Jobs

    part, runtime = torch_runtime.load(checkpoint, settings=settings, role=ROLE)
    engine: DecoderEngine | DenoisingEngine
    if isinstance(part, Denoiser):
        engine = DenoisingEngine(
            part,
            role=ROLE,
            max_queue_jobs=settings.max_queue_jobs,
            max_queue_seconds=settings.max_queue_seconds,
            max_batch_rows=settings.max_batch_rows or limits.MAX_BATCH_ROWS,
            progress_interval_seconds=settings.progress_interval_ms / 1e3,
            memory=torch_runtime.memory_to_fit(settings, device=part.device),
        )
    else:
        engine = DecoderEngine(
            part,
            max_queue_jobs=settings.max_queue_jobs,
            max_queue_seconds=settings.max_queue_seconds,
            max_batch_rows=torch_runtime.max_batch(
                settings, device=part.device, on_gpu=limits.MAX_BATCH_PICTURES
            ),
            max_wait_seconds=settings.max_wait_ms / 1e3,
        )
    servicer = DecoderServicer(
        Jobs(engine, role=ROLE, runtime=runtime, also_accepts=settings.also_accepts)
    )

    def register(server: grpc.aio.Server) -> None:
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]

    def watch(metrics: Metrics) -> None:
        watched = engine.loop if isinstance(engine, DenoisingEngine) else engine.worker
        watched.watch = metrics.watch_batch(
            rows=lambda: engine.rows, max_batch_rows=lambda: engine.max_batch_rows
        )

    return Stage(
        role=ROLE,
        service=decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name,
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
