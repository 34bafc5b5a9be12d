"""Tiny checkpoints for the tests of `carrara_models`, and a cache folder of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from carrara_models.checkpoints import open_checkpoint
from carrara_models.families import Role, load_part
from tiny_checkpoints import build_sd1, build_sd2


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def sd1(tmp_path: Path) -> Path:
    return build_sd1(tmp_path / "sd1")


@pytest.fixture
def sd2(tmp_path: Path) -> Path:
    return build_sd2(tmp_path / "sd2")


@pytest.fixture
def load() -> Callable[[Path, Role], Any]:
    def load_role(folder: Path, role: Role, dtype: torch.dtype = torch.float32) -> Any:
        checkpoint = open_checkpoint(folder, stage=role)
        return load_part(checkpoint, device=torch.device("cpu"), dtype=dtype)

    return load_role
