"""`python -m carrara_services.decoder`: the wiring of the decoder's stage."""

from __future__ import annotations

import grpc

from carrara.v1 import decoder_pb2, decoder_pb2_grpc
from carrara_models.checkpoints import open_checkpoint
from carrara_services.decoder import ROLE
from carrara_services.serving.app import Stage
from carrara_services.serving.command_line import run_stage
from carrara_services.serving.settings import Settings


def open_stage(settings: Settings) -> Stage:
    """Loads the decoder and puts its engine behind its servicer."""
    checkpoint = open_checkpoint(settings.checkpoint, stage=ROLE)
    # Here, not above: torch takes seconds, and what is wrong with a flag is told without it.
    from carrara_services import torch_runtime
    from carrara_services.decoder.engine import DecoderEngine
    from carrara_services.decoder.servicer import DecoderServicer

    part, runtime = torch_runtime.load(checkpoint, settings=settings)
    engine = DecoderEngine(part, max_queue_jobs=settings.max_queue_jobs)
    line = engine.worker.line
    servicer = DecoderServicer(engine, runtime=runtime)

    def register(server: grpc.aio.Server) -> None:
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]

    return Stage(
        role=ROLE,
        service=decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name,
        register=register,
        part=part,
        runtime=runtime,
        warm_up=engine.warm_up,
        line=line,
        rows=lambda: line.running,
        max_batch_rows=1,
        hand_back=line.close,
        close=engine.worker.close,
    )


if __name__ == "__main__":
    run_stage(ROLE, open_stage)
