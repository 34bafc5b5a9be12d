"""All stages of a checkpoint in this process, each a real service on a Unix socket of its own.

What `Cascade.embedded` runs on: the SDK then talks to these addresses as to any others.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from carrara_services.decoder.__main__ import open_stage as open_decoder
from carrara_services.generator.__main__ import open_stage as open_generator
from carrara_services.serving.app import Stage, StageServer
from carrara_services.serving.settings import read_settings
from carrara_services.text_encoder.__main__ import open_stage as open_text_encoder


class EmbeddedStages:
    """Running stages and their addresses; close them when done.

    Attributes:
        text_encoders: Addresses, in the order of the chain; so the two others.
    """

    def __init__(self, checkpoint: str | None, *, num_threads: int | None) -> None:
        self.text_encoders: list[str] = []
        self.generators: list[str] = []
        self.decoders: list[str] = []
        self._servers: list[StageServer] = []
        # The folder is this user's alone, and so are the sockets in it.
        self._folder = tempfile.TemporaryDirectory(prefix="carrara-")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="embedded stages", daemon=True
        )
        self._thread.start()
        try:
            self._wait(self._start(checkpoint, num_threads))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the stages; what runs is cancelled. Closing twice does nothing."""
        if self._loop.is_closed():
            return
        for server in self._servers:
            self._wait(server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.cleanup()

    async def _start(self, checkpoint: str | None, num_threads: int | None) -> None:
        stages: tuple[tuple[str, Callable[..., Stage], list[str]], ...] = (
            ("text-encoder", open_text_encoder, self.text_encoders),
            ("generator", open_generator, self.generators),
            ("decoder", open_decoder, self.decoders),
        )
        for role, open_stage, addresses in stages:
            bind = f"unix:{Path(self._folder.name) / role}"
            settings = read_settings(
                {"checkpoint": checkpoint, "bind": bind, "num_threads": num_threads}
            )
            # One address, which CARRARA_METRICS_BIND may name, is not for three stages.
            settings = settings.model_copy(update={"metrics_bind": None})
            server = StageServer(role, settings)
            self._servers.append(server)
            await server.start(open_stage)
            addresses.append(server.address)

    def _wait(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()  # type: ignore[arg-type]


def start(checkpoint: str | None, *, num_threads: int | None = None) -> EmbeddedStages:
    """Starts all stages of a checkpoint in this process.

    Args:
        checkpoint: A folder, the name of an embedded checkpoint, or a hub id; None for the default.
        num_threads: That torch computes with, in the whole process; None leaves it as it is.

    Raises:
        CheckpointError: The checkpoint cannot be used.
    """
    return EmbeddedStages(checkpoint, num_threads=num_threads)
