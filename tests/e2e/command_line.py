"""Runs the command line as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CARRARA = str(Path(sys.executable).with_name("carrara"))
PROMPT = "a large red circle above a small blue square on a white background"


def carrara(
    *arguments: str, timeout: float = 200, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; `variables` join this process's own."""
    return subprocess.run(
        [CARRARA, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
