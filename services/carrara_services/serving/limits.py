"""The limits of a stage as a server, as named constants; `Describe` tells them.

Those of the settings (steps, guidance, pixels) are in `carrara_models.limits`.
"""

from __future__ import annotations

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
MAX_CONCURRENT_CALLS = 1024  # health watches included
MAX_PROMPT_BYTES = 8192  # UTF-8
MAX_QUEUE_JOBS = 64
MAX_QUEUE_SECONDS = 600.0  # what waits longer than clients wait by default is of no use
MAX_BATCH_ROWS = 32  # of denoisers
# In fast numerics, on a GPU.
MAX_BATCH_PICTURES = 8
MAX_BATCH_TEXTS = 16
MAX_WAIT_MS = 0.0  # what comes while others are done is a batch without waiting
# A job's steps may take less than what it costs to tell of them.
PROGRESS_INTERVAL_MS = 100.0
TILE_SIZE = 1024  # what most models are trained at or below
MAX_CACHED_TEXTS = 1024
MAX_CACHED_BYTES = 256 * 1024 * 1024

# Defaults of the settings of the same names.
DRAIN_PAUSE_SECONDS = 5.0
DRAIN_GRACE_SECONDS = 600.0
MAX_CONNECTION_AGE_SECONDS = 60.0

# A caller that the network has swallowed is noticed after both, and its rows are freed.
KEEPALIVE_SECONDS = 20.0
KEEPALIVE_TIMEOUT_SECONDS = 10.0
# Callers may ping as often; gRPC's default, once in five minutes, ends their connections.
MIN_PING_INTERVAL_SECONDS = 5.0

# A stage answers so much before the caller's deadline, so that its message arrives before the
# caller's own clock gives up; at most a tenth of the time that the caller gave.
DEADLINE_MARGIN_SECONDS = 0.05
