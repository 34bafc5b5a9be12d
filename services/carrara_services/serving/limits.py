"""The limits of a stage as a server, as named constants; `Describe` tells them.

Those of the settings (steps, guidance, pixels) are in `carrara_models.limits`.
"""

from __future__ import annotations

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
MAX_CONCURRENT_CALLS = 1024  # health watches included
MAX_PROMPT_BYTES = 8192  # UTF-8
MAX_QUEUE_JOBS = 64
MAX_BATCH_ROWS = 32
MAX_CACHED_TEXTS = 1024
MAX_CACHED_BYTES = 256 * 1024 * 1024

# Beyond it a stage that has been told to end gives up what still runs.
MAX_DRAIN_SECONDS = 600.0

# A stage answers so much before the caller's deadline, so that its message arrives before the
# caller's own clock gives up; at most a tenth of the time that the caller gave.
DEADLINE_MARGIN_SECONDS = 0.05
