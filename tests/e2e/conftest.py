"""What all tests of containers share."""

from __future__ import annotations

import pytest

from e2e.compose import Compose


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The images of the stages and of the client, built from what lies here."""
    with Compose(tmp_path_factory.mktemp("images")) as compose:
        compose.must("--profile", "tools", "build", seconds=800)
