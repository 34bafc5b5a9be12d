"""diffusers behind Ray Serve, with @serve.batch: what waits is painted together.

A batch may hold unequal settings, which the pipeline cannot paint in one call: each group of equal
ones is a call of its own, and all answers go out when the batch is done.
"""

from __future__ import annotations

import asyncio
import signal
import threading

import ray
from painting import Computing, Painter, Wanted, computing_from, read_arguments
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

# Just long enough that what arrives together is batched together; a batch is much longer.
BATCH_TIMEOUT_SECONDS = 0.01
# With Serve's default, 5, no batch could be larger than that.
MAX_ONGOING_REQUESTS = 1024


@serve.deployment(max_ongoing_requests=MAX_ONGOING_REQUESTS)
class Pictures:
    """POST /generate."""

    def __init__(self, checkpoint: str, computing: Computing, *, max_batch_size: int) -> None:
        self.painter = Painter(checkpoint, computing)
        self.paint.set_max_batch_size(max_batch_size)

    @serve.batch(batch_wait_timeout_s=BATCH_TIMEOUT_SECONDS)
    async def paint(self, wanted: list[Wanted]) -> list[bytes]:
        """Paints a batch in a thread, so that the next one fills meanwhile."""
        return await asyncio.to_thread(self.painter.paint_png, wanted)

    async def __call__(self, request: Request) -> Response:
        """Paints one picture."""
        png = await self.paint(Wanted(**await request.json()))
        return Response(png, media_type="image/png")


if __name__ == "__main__":
    arguments = read_arguments()
    ray.init(
        num_cpus=max(2, arguments.workers),
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    gpus = 0 if arguments.device == "cpu" else 1 / arguments.workers
    deployment = Pictures.options(
        num_replicas=arguments.workers, ray_actor_options={"num_gpus": gpus}
    )
    serve.run(
        deployment.bind(
            str(arguments.checkpoint),
            computing_from(arguments),
            max_batch_size=arguments.max_batch_size,
        ),
        route_prefix="/generate",
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()
