"""Why a stage refuses or gives up work: one exception for each reason that the models do not have.

Neither torch nor gRPC; `carrara_services.serving.errors` gives each its status.
"""

from __future__ import annotations

from typing import Literal


class QueueFullError(Exception):
    """There is more work before this than may be, or than its deadline allows.

    Attributes:
        retry_after_seconds: When it is worth coming back.
        limit: What it was too much for; but for its own deadline, others would be refused too.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float,
        limit: Literal["jobs", "seconds", "deadline"] = "jobs",
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds, self.limit = retry_after_seconds, limit


class TooLargeError(Exception):
    """The work needs more memory than the device has, even alone.

    Attributes:
        step: Steps done; None for work without steps.
    """

    def __init__(self, *, step: int | None = None) -> None:
        super().__init__(
            "this job needs more memory than the device has; ask for a smaller picture"
        )
        self.step = step


class DrainingError(Exception):
    """The stage is about to end and takes no new work."""

    def __init__(self) -> None:
        super().__init__("this stage is shutting down; ask another replica")


class StalledError(Exception):
    """The thread that does the work has ended; only a restart helps."""

    def __init__(self) -> None:
        super().__init__("this stage's worker has ended; restart the stage")


class DeadlineError(Exception):
    """The caller's time is over.

    Attributes:
        step: Steps done; None for work that was still waiting or has no steps.
    """

    def __init__(self, where: str, *, step: int | None = None) -> None:
        super().__init__(f"the deadline passed {where}")
        self.step = step


class UnknownFieldError(ValueError):
    """A field that this stage does not know: acting without it would make another picture."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"{field}: this stage does not know it; the caller is newer than the stage"
        )
        self.field = field


class FingerprintError(Exception):
    """The job is meant for other weights."""

    def __init__(self, wanted: str, *, have: str) -> None:
        super().__init__(f"the job is for stage {wanted}, and this one is {have}")


class RandomStateError(ValueError):
    """A random state that no torch generator takes."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
