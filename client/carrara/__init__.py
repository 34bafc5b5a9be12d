"""Carrara: text-to-image models, served stage by stage.

from carrara import Cascade

with Cascade.connect(
    text_encoders=["localhost:50051"],
    generators=["localhost:50052"],
    decoders=["localhost:50053"],
) as cascade:
    result = cascade.generate("a large red circle on a white background", seed=7)
    result.images[0].save("circle.png")
"""

from carrara.aio import AsyncCascade
from carrara.arguments import GenerateArguments
from carrara.cascade import Cascade
from carrara.exceptions import (
    AccessDeniedError,
    CarraraError,
    CascadeClosedError,
    ContractError,
    DeadlineError,
    FieldViolation,
    InternalStageError,
    InvalidArgumentError,
    MissingExtraError,
    NotAStageError,
    NumericalError,
    ResourceExhaustedError,
    StageCancelledError,
    StageUnavailableError,
)
from carrara.results import (
    Finished,
    GeneratedImage,
    GenerationResult,
    GenerationWarning,
    Preview,
    Progress,
    Queued,
    StageUsage,
)

__all__ = [
    "AccessDeniedError",
    "AsyncCascade",
    "CarraraError",
    "Cascade",
    "CascadeClosedError",
    "ContractError",
    "DeadlineError",
    "FieldViolation",
    "Finished",
    "GenerateArguments",
    "GeneratedImage",
    "GenerationResult",
    "GenerationWarning",
    "InternalStageError",
    "InvalidArgumentError",
    "MissingExtraError",
    "NotAStageError",
    "NumericalError",
    "Preview",
    "Progress",
    "Queued",
    "ResourceExhaustedError",
    "StageCancelledError",
    "StageUnavailableError",
    "StageUsage",
]
