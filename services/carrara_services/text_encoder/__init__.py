"""The text encoder as a service."""

from typing import Final

ROLE: Final = "text-encoder"
