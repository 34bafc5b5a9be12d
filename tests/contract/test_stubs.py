"""The checked-in stubs are what the protos say, and the names used as strings are theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from carrara.v1 import stage_pb2, tensor_pb2, text_encoder_pb2

ROOT = Path(__file__).resolve().parents[2]


def test_regenerated_stubs_equal_the_checked_in_ones(tmp_path: Path) -> None:
    protos = sorted((ROOT / "protos").glob("carrara/v1/*.proto"))
    flags = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I",
            str(ROOT / "protos"),
            *flags,
            *map(str, protos),
        ],
        check=True,
    )
    checked_in = ROOT / "client" / "carrara" / "v1"
    regenerated = {path.name: path.read_bytes() for path in (tmp_path / "carrara/v1").iterdir()}
    assert len(regenerated) == 3 * len(protos)
    assert regenerated == {path.name: path.read_bytes() for path in checked_in.glob("*_pb2*.py*")}


def test_every_enum_starts_at_unspecified_and_carries_its_name() -> None:
    files = [stage_pb2.DESCRIPTOR, tensor_pb2.DESCRIPTOR, text_encoder_pb2.DESCRIPTOR]
    enums = [enum for file in files for enum in file.enum_types_by_name.values()]
    assert len(enums) >= 7
    for enum in enums:
        prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_")
        assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(f"{prefix}_") for value in enum.values)
