"""What holds for the tools of all tests."""

from __future__ import annotations

from hypothesis import settings

# Machines are noisy: an example that takes long says nothing.
settings.register_profile("carrara", deadline=None)
settings.load_profile("carrara")
