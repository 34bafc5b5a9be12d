from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # toy_stages, which several tests build on
import toy_stages


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[toy_stages.ToyCascade]:
    """Toy stages, whose addresses stand in the environment."""
    with toy_stages.serving_in_a_thread() as toys:
        monkeypatch.setenv("CARRARA_TEXT_ENCODER", toys.text_encoder.address)
        monkeypatch.setenv("CARRARA_GENERATOR", toys.generator.address)
        monkeypatch.setenv("CARRARA_DECODER", toys.decoder.address)
        yield toys
