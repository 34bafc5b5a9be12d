"""The generator as a service."""

from typing import Final

ROLE: Final = "generator"
