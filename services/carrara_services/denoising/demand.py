"""What a denoising job asks for, before it has started: rows x steps x pixels."""

from __future__ import annotations

from carrara_models.parts import Denoiser, DenoisingRequest
from carrara_services.admission.demand import Demand
from carrara_services.work import Work

# Samplers that call the network twice for each step.
_TWICE = ("heun",)


def demand_of(part: Denoiser, work: Work) -> Demand:
    """Estimates a job's demand; nothing of the request has been checked."""
    request = work.request
    defaults = {argument.name: argument.default for argument in part.arguments}
    schedulers = next((a.choices for a in part.arguments if a.name == "scheduler"), ())
    scheduler = request.scheduler or (schedulers[0] if schedulers else "")
    steps = request.num_inference_steps or int(defaults.get("num_inference_steps") or 1)
    if any(name in scheduler for name in _TWICE):
        steps = 2 * steps - 1
    if work.resume is not None:
        steps -= work.resume.step
    rows = part.rows(request)
    cost = float(rows * max(steps, 1) * _pixels(request, defaults))
    return Demand(cost=cost, rows=rows, priority=work.priority)


def _pixels(request: DenoisingRequest, defaults: dict[str, float | None]) -> int:
    """Of the picture, or of the one that it is made from; 1 where there is none, as of a prior."""
    if request.sample is not None and request.sample.height:
        return request.sample.height * request.sample.width
    height, width = (
        getattr(request, name) or int(defaults.get(name) or 1) for name in ("height", "width")
    )
    return height * width
