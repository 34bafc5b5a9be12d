"""All stages in one process, over Unix sockets that nobody else can open."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import grpc
import pytest

from carrara.v1 import stage_pb2, stage_pb2_grpc
from carrara_models.errors import CheckpointError
from carrara_services import embedded
from tiny_checkpoints import build_sd1


def test_each_stage_answers_on_a_private_socket_until_it_is_closed(tmp_path: Path):
    stages = embedded.start(checkpoints=[str(build_sd1(tmp_path / "sd1"))], num_threads=1)
    addresses = [*stages.text_encoders, *stages.generators, *stages.decoders]
    try:
        roles = []
        for address in addresses:
            with grpc.insecure_channel(address) as channel:
                stub = stage_pb2_grpc.StageServiceStub(channel)
                roles.append(stub.Describe(stage_pb2.DescribeRequest(), timeout=10).role)
        assert roles == [
            stage_pb2.ROLE_TEXT_ENCODER,
            stage_pb2.ROLE_GENERATOR,
            stage_pb2.ROLE_DECODER,
        ]
        folder = Path(addresses[0].removeprefix("unix:")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        stages.close()
    assert not folder.exists()
    assert not [t for t in threading.enumerate() if t.name in {"denoising", "embedded stages"}]
    stages.close()


def test_a_checkpoint_that_is_not_there_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(CheckpointError):
        embedded.start(checkpoints=[str(tmp_path / "nothing")])
    assert not [t for t in threading.enumerate() if t.name == "embedded stages"]
