"""The decoder as a service."""

from typing import Final

ROLE: Final = "decoder"
