"""Gathers what the stages report about one request, and makes its result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import cast

from PIL import Image

from carrara.arguments import Value, kind_of, prefix_of, values_for
from carrara.chain import Chain
from carrara.prompts import Prompt
from carrara.results import (
    GeneratedImage,
    GenerationResult,
    GenerationWarning,
    StageUsage,
    png_settings,
)
from carrara.v1 import stage_pb2
from carrara.v1.tensor_pb2 import DataType

NUMERICS_NAMES = {stage_pb2.NUMERICS_EXACT: "exact", stage_pb2.NUMERICS_FAST: "fast"}

_USAGE_FIELDS = tuple(field.name for field in stage_pb2.Usage.DESCRIPTOR.fields)


class Outcome:
    """The result of one request in the making.

    Attributes:
        settings: Of all generators and decoders, as given, else their defaults.
        guidance_scale: Of the stage that paints; None where it has none.
        num_inference_steps: Likewise.
        scheduler: Likewise.
        guided: Whether any stage needs the negative half: a scale from 0 to 1 is off.
    """

    def __init__(self, chain: Chain, wanted: Prompt) -> None:
        self._chain, self._wanted = chain, wanted
        self._usage = [dict.fromkeys(_USAGE_FIELDS, 0) | {"queue_ms": 0.0} for _ in chain.stages]
        self._attempts = [0 for _ in chain.stages]
        self._call_ms = [0.0 for _ in chain.stages]
        self._provenance: list[stage_pb2.Provenance | None] = [None for _ in chain.stages]
        self._warnings: dict[GenerationWarning, None] = {}  # a set that keeps the order
        self.settings = _resolved(chain, wanted)
        steps, scale = (
            self.settings.get(name) for name in ("num_inference_steps", "guidance_scale")
        )
        self.num_inference_steps = None if steps is None else int(steps)  # type: ignore[arg-type]
        self.guidance_scale = None if scale is None else float(scale)  # type: ignore[arg-type]
        scheduler = self.settings.get("scheduler")
        self.scheduler = None if scheduler is None else str(scheduler)
        self.guided = _is_guided(chain, wanted, self.settings)
        if wanted.negative_prompt is not None and not self.guided:
            self._warnings[
                GenerationWarning(
                    code="NEGATIVE_PROMPT_UNUSED",
                    message=f"the negative prompt has no effect: {self._why_unguided}",
                    field="negative_prompt",
                )
            ] = None

        if wanted.preview_interval_steps and not any(
            step.stage.shows_previews for step in chain.steps
        ):
            self._warnings[
                GenerationWarning(
                    code="PREVIEWS_UNAVAILABLE",
                    message="there are no previews: no stage of this cascade can show its jobs; "
                    "of latents, `carrara train previews` makes them visible",
                    field="preview_interval_steps",
                )
            ] = None

    @property
    def _why_unguided(self) -> str:
        for name in ("true_cfg_scale", "guidance_scale"):
            if (scale := self.settings.get(name)) is not None:
                return f"guidance is off at a {name} of {scale:g}"
        return "no stage takes a guidance_scale"

    @contextlib.contextmanager
    def calling(self, stage_index: int) -> Iterator[Callable[[], None]]:
        """While a stage is called: takes the time, and gives what counts each attempt."""

        def count_attempt() -> None:
            self._attempts[stage_index] += 1

        began = time.perf_counter()
        yield count_attempt
        self._call_ms[stage_index] += 1e3 * (time.perf_counter() - began)

    def add(self, stage_index: int, result: stage_pb2.Result) -> None:
        """Takes down what one stage reports with one result."""
        usage = self._usage[stage_index]
        for name in _USAGE_FIELDS:
            usage[name] += getattr(result.usage, name)
        self._provenance[stage_index] = result.provenance
        for warning in cast(Iterable[stage_pb2.Warning], result.warnings):
            unverified = warning.code == stage_pb2.WARNING_CODE_CONTRACT_UNVERIFIED
            if unverified and self._chain.belongs_together:
                continue
            try:
                code = stage_pb2.WarningCode.Name(warning.code).removeprefix("WARNING_CODE_")
            except ValueError:  # of a newer stage
                code = str(warning.code)
            self._warnings[
                GenerationWarning(code, warning.message, warning.field, warning.detail)
            ] = None

    def result(self, images: Sequence[Image.Image], *, total_ms: float) -> GenerationResult:
        """Makes the result, once every stage has reported."""
        stages = self._chain.stages
        exact = all(
            provenance is not None and provenance.numerics == stage_pb2.NUMERICS_EXACT
            for provenance in self._provenance
        )
        numerics = "exact" if exact else "fast"
        wanted = self._wanted
        settings = {
            "Software": f"Carrara {version('carrara')}",
            "prompt": wanted.prompt,
            **{
                name: text
                for name, text in wanted.texts.items()
                if self.guided or not name.startswith("negative_")
            },
            **self.settings,
            "height": images[0].height,
            "width": images[0].width,
            "numerics": numerics,
            "stages": [
                _origin(stage.role, stage.description.checkpoint, provenance)
                for stage, provenance in zip(stages, self._provenance, strict=True)
                if provenance is not None
            ],
        }
        return GenerationResult(
            prompt=wanted.prompt,
            negative_prompt=wanted.negative_prompt,
            images=tuple(
                GeneratedImage(image, seed, png_settings(settings | {"seed": seed}))
                for image, seed in zip(images, wanted.seeds, strict=True)
            ),
            usage=tuple(
                StageUsage(
                    role=stage.role,
                    stage=stage.description.stage or stage.role,
                    address=stage.address,
                    fingerprint=stage.description.fingerprint,
                    attempts=attempts,
                    call_ms=call_ms,
                    **usage,  # type: ignore[arg-type]
                )
                for stage, attempts, call_ms, usage in zip(
                    stages, self._attempts, self._call_ms, self._usage, strict=True
                )
            ),
            numerics=numerics,
            warnings=tuple(self._warnings),
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            scheduler=self.scheduler,
            height=images[0].height,
            width=images[0].width,
            total_ms=total_ms,
            settings=self.settings,
        )


def _resolved(chain: Chain, wanted: Prompt) -> dict[str, Value]:
    """All settings of generators and decoders: the one that paints first, without a prefix."""
    stages = [step.stage for step in chain.steps]
    settings: dict[str, Value] = {}
    for stage in sorted(stages, key=prefix_of):
        given = values_for(stage, wanted.arguments, stages=stages)
        for argument in stage.description.arguments:
            name = prefix_of(stage) + argument.name
            if argument.name in given:
                settings.setdefault(name, given[argument.name])
            elif argument.choices:
                settings.setdefault(name, argument.choices[0])
            elif argument.HasField("default_number"):
                settings.setdefault(name, _number(argument))
    return settings


def _number(argument: stage_pb2.Argument) -> Value:
    """A default, which travels as a real number, in the type of its setting."""
    field = kind_of(argument.name)
    if field is None or field.cpp_type == field.CPPTYPE_DOUBLE:
        return argument.default_number
    number = int(argument.default_number)
    return bool(number) if field.cpp_type == field.CPPTYPE_BOOL else number


def _is_guided(chain: Chain, wanted: Prompt, settings: Mapping[str, Value]) -> bool:
    for step in chain.steps:
        known = {argument.name for argument in step.stage.description.arguments}
        name = "guidance_scale"
        if "true_cfg_scale" in known:  # there the guidance scale is an input of the network
            if wanted.negative_prompt is None:
                continue
            name = "true_cfg_scale"
        scale = settings.get(prefix_of(step.stage) + name) if name in known else None
        if scale is not None and float(scale) > 1:  # type: ignore[arg-type]
            return True
    return False


def _origin(role: str, checkpoint: str, provenance: stage_pb2.Provenance) -> dict[str, object]:
    return {
        "role": role,
        "checkpoint": checkpoint,
        "fingerprint": provenance.stage_fingerprint,
        "numerics": NUMERICS_NAMES.get(provenance.numerics, "unknown"),
        "engine": provenance.engine,
        "precision": DataType.Name(provenance.precision).removeprefix("DATA_TYPE_").lower(),
        "device": provenance.device,
        "num_threads": provenance.num_threads,
        "versions": dict(provenance.versions),
    }
