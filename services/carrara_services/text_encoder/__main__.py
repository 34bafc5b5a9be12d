"""`python -m carrara_services.text_encoder`: the wiring of the text encoder's stage."""

from __future__ import annotations

import grpc

from carrara.v1 import text_encoder_pb2, text_encoder_pb2_grpc
from carrara_models.checkpoints import open_checkpoint, stage_of_role
from carrara_services.serving import limits
from carrara_services.serving.app import Stage
from carrara_services.serving.command_line import run_stage
from carrara_services.serving.settings import Settings
from carrara_services.text_encoder import ROLE

# A prompt and its negative; each is a job in the line.
_TEXTS_OF_A_REQUEST = 2


def open_stage(settings: Settings) -> Stage:
    """Loads the text encoder and puts its engine behind its servicer."""
    stage = settings.stage or stage_of_role(settings.checkpoint, ROLE)
    checkpoint = open_checkpoint(settings.checkpoint, stage=stage)
    # Here, not above: torch takes seconds, and what is wrong with a flag is told without it.
    from carrara_services import torch_runtime
    from carrara_services.text_encoder.engine import TextEncoderEngine
    from carrara_services.text_encoder.servicer import TextEncoderServicer

    part, runtime = torch_runtime.load(checkpoint, settings=settings, role=ROLE)
    engine = TextEncoderEngine(
        part,
        max_queue_jobs=_TEXTS_OF_A_REQUEST * settings.max_queue_jobs,
        max_queue_seconds=settings.max_queue_seconds,
        max_batch_rows=torch_runtime.max_batch(
            settings, device=part.device, on_gpu=limits.MAX_BATCH_TEXTS
        ),
        max_wait_seconds=settings.max_wait_ms / 1e3,
        max_cached_texts=limits.MAX_CACHED_TEXTS,
        max_cached_bytes=limits.MAX_CACHED_BYTES,
    )
    line = engine.worker.line
    servicer = TextEncoderServicer(engine, runtime=runtime)

    def register(server: grpc.aio.Server) -> None:
        text_encoder_pb2_grpc.add_TextEncoderServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]

    return Stage(
        role=ROLE,
        service=text_encoder_pb2.DESCRIPTOR.services_by_name["TextEncoderService"].full_name,
        register=register,
        part=part,
        runtime=runtime,
        warm_up=engine.warm_up,
        line=line,
        rows=lambda: line.running,
        max_batch_rows=lambda: engine.worker.max_batch,
        hand_back=lambda: None,  # texts take milliseconds: all that were admitted are finished
        close=engine.worker.close,
        watch=lambda metrics: metrics.watch_cache(engine.cache),
    )


if __name__ == "__main__":
    run_stage(ROLE, open_stage)
