"""All stages of a checkpoint in this process, each a real service on a Unix socket of its own.

What `Cascade.embedded` runs on: the SDK then talks to these addresses as to any others.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from carrara.runtimes import StageToRun
from carrara_models.checkpoints import stages_of_all
from carrara_models.errors import CheckpointError
from carrara_models.families import STAGE_ROLES
from carrara_services.decoder.__main__ import open_stage as open_decoder
from carrara_services.generator.__main__ import open_stage as open_generator
from carrara_services.serving.app import Stage, StageServer
from carrara_services.serving.settings import read_settings
from carrara_services.text_encoder.__main__ import open_stage as open_text_encoder

OPENERS: Mapping[str, Callable[..., Stage]] = {
    "text-encoder": open_text_encoder,
    "generator": open_generator,
    "decoder": open_decoder,
}


class EmbeddedStages:
    """Running stages and their addresses; close them when done.

    Attributes:
        text_encoders: Addresses, in the order of the chain; so the two others.
    """

    def __init__(self, stages: Sequence[StageToRun], *, settings: Mapping[str, object]) -> None:
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
            self._wait(self._start(stages, settings))
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

    async def _start(self, stages: Sequence[StageToRun], given: Mapping[str, object]) -> None:
        addresses = {
            "text-encoder": self.text_encoders,
            "generator": self.generators,
            "decoder": self.decoders,
        }
        for index, stage in enumerate(stages):
            role = STAGE_ROLES[stage.stage]
            settings = read_settings(
                {
                    **given,
                    "checkpoint": stage.checkpoint,
                    "stage": stage.stage,
                    "also_accepts": stage.also_accepts,
                    "bind": f"unix:{Path(self._folder.name) / f'{index}-{stage.stage}'}",
                }
            )
            # One address, which CARRARA_METRICS_BIND may name, is not for several stages.
            settings = settings.model_copy(update={"metrics_bind": None})
            server = StageServer(role, settings)
            self._servers.append(server)
            await server.start(OPENERS[role])
            addresses[role].append(server.address)

    def _wait(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()  # type: ignore[arg-type]


def start(
    *,
    checkpoints: Sequence[str] = (),
    stages: Sequence[StageToRun] = (),
    num_threads: int | None = None,
    settings: Mapping[str, object] = MappingProxyType({}),
) -> EmbeddedStages:
    """Starts stages in this process.

    Args:
        checkpoints: All stages of these are started: folders, names of embedded checkpoints, or
            hub ids; without any, and without stages, the default.
        stages: These are started beside them.
        num_threads: That torch computes with, in the whole process; None leaves it as it is.
        settings: What else each stage is told, by the names of `serving.settings.Settings`.

    Raises:
        CheckpointError: A checkpoint cannot be used.
        SettingsError: A setting is out of range.
    """
    if not checkpoints and not stages:
        checkpoints = (read_settings({}).checkpoint,)
    wanted = [
        StageToRun(stage=stage, checkpoint=name) for name, stage in stages_of_all(checkpoints)
    ]
    for stage in stages:
        if stage.stage not in STAGE_ROLES:
            raise CheckpointError(
                f"{stage.stage!r} is no stage; allowed: {', '.join(STAGE_ROLES)}."
            )
    return EmbeddedStages([*wanted, *stages], settings={**settings, "num_threads": num_threads})
