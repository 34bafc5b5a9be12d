"""The folder where engines keep what they have compiled, between starts."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

from carrara_models.caches import default_cache

logger = logging.getLogger(__name__)


def compiled_cache(cache_dir: Path | None) -> Path:
    """Makes the folder, in `cache_dir` or the user's own cache.

    What lies in it is run: machine code, and pickles of torch's. So it is used only where nobody
    else can write into it. Where it cannot be used, a warning says so, and one that ends with this
    process stands in.
    """
    folder = (cache_dir or default_cache()) / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        state = folder.stat()
        if state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return folder
        problem = f"others can write into {folder}"
    except OSError as error:
        problem = str(error)
    logger.warning("what is compiled is not kept for the next start: %s", problem)
    passing = tempfile.mkdtemp(prefix="carrara-compiled-")
    atexit.register(shutil.rmtree, passing, ignore_errors=True)
    return Path(passing)
