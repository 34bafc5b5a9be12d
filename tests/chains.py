"""Parts of a family chained in this process, as the SDK chains their services: for quick parity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carrara_models.checkpoints import Checkpoint, open_checkpoint, stages_of
from carrara_models.contracts import Contract, Kind
from carrara_models.denoising.previews import preview_of_latents
from carrara_models.denoising.run import run_alone
from carrara_models.families import argument_prefix, load_part
from carrara_models.limits import MAX_PREVIEW_SIDE
from carrara_models.parts import Denoiser, DenoisingRequest, Sample, TextEncoder, Texts
from carrara_models.pixels import handed_on, to_uint8
from carrara_models.rgb_projection import RgbProjection

CPU = torch.device("cpu")
_TEXTS = {field.name for field in fields(Texts)} - {"negative"}
_REQUEST = {field.name for field in fields(DenoisingRequest)}


def load_parts(
    folders: Sequence[Path],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> list[Any]:
    """All parts of all checkpoints, each loaded by itself; a second text encoder like the first is
    left out."""
    parts = [
        _shown(load_part(checkpoint, device=device, dtype=dtype), checkpoint=checkpoint)
        for folder in folders
        for stage in stages_of(folder)
        for checkpoint in [open_checkpoint(folder, stage=stage)]
    ]
    seen: set[str] = set()
    return [p for p in parts if p.fingerprint not in seen and not seen.add(p.fingerprint)]


def _shown(part: Any, *, checkpoint: Checkpoint) -> Any:
    """A part that shows its latents too, in colours of no meaning: tiny checkpoints have none."""
    if not isinstance(part, Denoiser) or part.preview or part.produces[0].kind is not Kind.LATENTS:
        return part
    channels = part.produces[0].tensors[0].shape[1]
    weights = ((((0.3, 0.2, 0.1),) * (channels + 1)),) * (2 * channels + 1)
    checkpoint = replace(checkpoint, rgb_projection=RgbProjection(weights))
    preview = preview_of_latents(checkpoint, part.produces[0], device=part.device)
    return replace(part, preview=preview)


def paint(
    parts: Sequence[Any],
    settings: Mapping[str, Any],
    *,
    before: Callable[[Denoiser, DenoisingRequest], None] = lambda part, request: None,
) -> np.ndarray:
    """Paints one picture, uint8 [H, W, 3]; settings as of `Cascade.generate`.

    Args:
        before: Gets each denoiser and what it is about to be asked for.
    """
    sample: Sample | None = None
    pixels: torch.Tensor | None = None
    for part, request in requests(parts, settings):
        request = following(request, sample)
        if isinstance(part, Denoiser):
            before(part, request)
            sample = run_alone(part, request)
            pixels = sample.tensors.get("pixels")
        else:
            pixels = part.decode([sample])[0]
            sample = decoded(sample, pixels)
    return to_uint8(pixels)


def decoded(sample: Sample, pixels: torch.Tensor) -> Sample:
    """The sample of a decoder of latents, as a next part gets it; the random state passes by."""
    return Sample(
        tensors={"pixels": handed_on(pixels)},
        height=pixels.shape[2],
        width=pixels.shape[3],
        random_state=sample.random_state,
    )


def following(request: DenoisingRequest, sample: Sample | None) -> DenoisingRequest:
    """The request with what the part before has made, whose random state goes on."""
    if sample is None:
        return request
    return replace(request, sample=sample, random_state=sample.random_state)


def requests(
    parts: Sequence[Any], settings: Mapping[str, Any]
) -> list[tuple[Any, DenoisingRequest]]:
    """Each part that is no text encoder, with its request; the samples come when they are made."""
    settings = dict(settings)
    seed = settings.pop("seed")
    encoders = [part for part in parts if hasattr(part, "split")]
    painters = [part for part in parts if not hasattr(part, "split")]
    # As the SDK does: the negative half is encoded if any stage is guided.
    guided = any(_is_guided(part, settings) for part in painters)
    conditionings = [_encode(encoder, settings, guided=guided) for encoder in encoders]
    made = []
    for part, after in zip(painters, [*painters[1:], None], strict=True):
        made.append(
            (
                part,
                DenoisingRequest(
                    conditioning=_conditioning_for(part, encoders, conditionings),
                    random_state=seed,
                    consumer=None if after is None else _consumed(after),
                    **arguments_for(part, settings),
                ),
            )
        )
    return made


def arguments_for(part: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are meant for one part, without its prefix."""
    prefix = argument_prefix(part.stage)
    known = {argument.name for argument in part.arguments} & _REQUEST
    return {
        name.removeprefix(prefix): value
        for name, value in settings.items()
        if name.startswith(prefix) and name.removeprefix(prefix) in known
    }


def _is_guided(part: Any, settings: Mapping[str, Any]) -> bool:
    defaults = {argument.name: argument.default for argument in part.arguments}
    given = arguments_for(part, settings)
    name = "true_cfg_scale" if "true_cfg_scale" in defaults else "guidance_scale"
    if name == "true_cfg_scale" and settings.get("negative_prompt") is None:
        return False
    return (given.get(name, defaults.get(name)) or 0) > 1


def _encode(encoder: TextEncoder, settings: Mapping[str, Any], *, guided: bool) -> dict[str, Any]:
    known = {argument.name for argument in encoder.arguments}
    given = {name: settings.get(name) for name in _TEXTS if name in known}
    texts = Texts(**{"prompt": settings.get("prompt")} | given, negative=guided)
    tensors: dict[str, torch.Tensor] = {}
    for piece in encoder.split(texts):
        tensors |= encoder.encode([piece])[0].tensors
    return tensors


def _conditioning_for(
    part: Any, encoders: Sequence[Any], conditionings: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    for port in part.consumes:
        if port.contract.kind is Kind.CONDITIONING:
            for encoder, conditioning in zip(encoders, conditionings, strict=True):
                if encoder.produces[0].space == port.contract.space:
                    return conditioning
    return {}


def _consumed(part: Any) -> Contract:
    return next(
        port.contract for port in part.consumes if port.contract.kind is not Kind.CONDITIONING
    )


def _check_preview(picture: torch.Tensor) -> None:
    height, width, colours = picture.shape
    assert (picture.dtype, colours) == (torch.uint8, 3)
    assert 1 <= min(height, width) <= max(height, width) <= MAX_PREVIEW_SIDE


def run_together(
    denoiser: Denoiser, requests: Sequence[DenoisingRequest]
) -> tuple[list[Sample], bool]:
    """Runs jobs in one batch as far as their shapes allow; all but the first join a step later.

    Every second one is looked at before each of its steps, which must change nothing.

    Returns:
        The samples, and whether two jobs shared a batch at any time.
    """
    running, done = {0: denoiser.start(requests[0])}, {}
    waiting = dict(enumerate(requests[1:], start=1))
    shared = False
    while running or waiting:
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, job in running.items():
            groups.setdefault(job.group, []).append(i)
        for members in groups.values():
            shared = shared or len(members) > 1
            outputs = denoiser.predict([running[i] for i in members])
            for i, output in zip(members, outputs, strict=True):
                if denoiser.preview is not None and i % 2:
                    _check_preview(denoiser.preview(running[i], output))
            assert not any(denoiser.advance([running[i] for i in members], outputs))
        for i in [i for i, job in running.items() if job.step == job.num_steps]:
            done[i] = denoiser.finish(running.pop(i))
        running |= {i: denoiser.start(request) for i, request in waiting.items()}
        waiting = {}
    return [done[i] for i in range(len(requests))], shared
