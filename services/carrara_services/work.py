"""What an engine is given to do for one image."""

from __future__ import annotations

from dataclasses import dataclass

from carrara_models.parts import DenoisingRequest, JobState
from carrara_services.admission.demand import Priority


@dataclass(frozen=True)
class Work:
    """One image's work.

    Attributes:
        resume: Where the job goes on; None begins it. Only for an engine that is resumable.
        resumable: Whether the caller can go on elsewhere when this stage is about to end.
        preview_interval_steps: After how many steps the caller is shown the job, and again; 0 for
            never.
    """

    request: DenoisingRequest
    priority: Priority = Priority.NORMAL
    resume: JobState | None = None
    resumable: bool = False
    preview_interval_steps: int = 0
