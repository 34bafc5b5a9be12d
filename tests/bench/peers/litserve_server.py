"""diffusers behind LitServe, with its batching: what waits is painted together.

A batch may hold unequal settings, which the pipeline cannot paint in one call: each group of equal
ones is a call of its own, and all answers go out when the batch is done.
"""

from __future__ import annotations

import litserve
from fastapi import Response
from painting import Painter, Wanted, computing_from, read_arguments

arguments = read_arguments()
# Just long enough that what arrives together is batched together; a batch is much longer.
BATCH_TIMEOUT_SECONDS = 0.01


class Pictures(litserve.LitAPI):
    """POST /generate."""

    def setup(self, device: str) -> None:
        """Loads the weights, once in each worker."""
        self.painter = Painter(arguments.checkpoint, computing_from(arguments))

    def decode_request(self, request: dict[str, object]) -> Wanted:
        """Reads the JSON body."""
        return Wanted(**request)  # type: ignore[arg-type]

    def predict(self, x: list[Wanted] | Wanted) -> list[bytes] | bytes:
        """Paints a batch, or one request where batches are of one."""
        if isinstance(x, Wanted):
            return self.painter.paint_png([x])[0]
        return self.painter.paint_png(x)

    def encode_response(self, output: bytes) -> Response:
        """One PNG file."""
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    api = Pictures(
        api_path="/generate",
        max_batch_size=arguments.max_batch_size,
        batch_timeout=BATCH_TIMEOUT_SECONDS,
    )
    # Its own timeout, 30 s, would drop what a burst leaves waiting; callers have one of their own.
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=arguments.workers, timeout=False
    )
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
