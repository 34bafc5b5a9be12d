"""Where what can be made again is kept between starts."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """The user's own folder for Carrara; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "carrara"
