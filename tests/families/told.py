"""What there is to tell of the families: their parts on tiny checkpoints, and who compares them."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers

import chains
from carrara.arguments import NAMES
from carrara_models.checkpoints import read_index
from carrara_models.contracts import Argument
from carrara_models.families import FAMILIES, PartPlan, argument_prefix
from families import CASES
from families.case import FamilyCase
from parity import test_in_process, test_three_processes

# Stable Diffusion by itself is no case; these tests compare its pictures with the pipeline's.
IN_PROCESS = (
    test_in_process.test_picture_equals_the_pipelines_with_every_scheduler,
    test_in_process.test_picture_equals_the_pipelines_at_the_edges_of_the_settings,
    test_in_process.test_settings_that_nobody_gave_are_the_pipelines,
    test_in_process.test_picture_equals_the_pipelines_for_odd_prompts,
)
SERVED = (
    test_three_processes.test_served_picture_equals_the_pipelines,
    test_three_processes.test_served_picture_equals_the_pipelines_at_other_sizes,
)

# What diffusers' calls have and Carrara spells otherwise, or takes from the stage before.
ELSEWHERE = {
    *("self", "kwargs", "generator", "num_images_per_prompt", "batch_size", "image"),
    *("image_embeds", "negative_image_embeds", "output_type", "return_dict"),
    *("callback", "callback_steps", "callback_on_step_end", "callback_on_step_end_tensor_inputs"),
}


@dataclass(frozen=True)
class Told:
    """What is known of one stage of one family.

    Attributes:
        parts: The part as each tiny checkpoint of the family has it.
    """

    name: str
    plan: PartPlan
    parts: Sequence[Any]

    @property
    def denoises(self) -> bool:
        return hasattr(self.parts[0], "predict")

    @property
    def arguments(self) -> Mapping[str, Argument]:
        """By the names of `generate`."""
        prefix = argument_prefix(self.name)
        found: dict[str, Argument] = {}
        for part in self.parts:
            for argument in part.arguments:
                found.setdefault(prefix + argument.name, argument)
        return {name: argument for name, argument in found.items() if name in (*NAMES, "prompt")}

    def is_of_every_checkpoint(self, argument: Argument) -> bool:
        """Whether the part takes it whatever the checkpoint."""
        return all(argument.name in {a.name for a in part.arguments} for part in self.parts)

    @property
    def calls_one_by_one(self) -> bool:
        """Whether the network is called once per job on the CPU."""
        return self.denoises and "one_by_one=True" in inspect.getsource(type(self.parts[0]).predict)


@functools.cache
def pipelines_of(case: str) -> tuple[str, ...]:
    """The classes that a case's checkpoints are for, in the order of the image's way."""
    return tuple(read_index(folder)[0] for folder in CASES[case].folders)


def cases_of(pipeline_class: str) -> list[FamilyCase]:
    """Those that a family has a part in."""
    return [case for case in CASES.values() if pipeline_class in pipelines_of(case.name)]


@functools.cache
def stages_of(pipeline_class: str) -> list[Told]:
    """The stages of a family, loaded from the tiny checkpoints of all its cases."""
    folders = [
        folder
        for case in cases_of(pipeline_class)
        for folder, made_for in zip(case.folders, pipelines_of(case.name), strict=True)
        if made_for == pipeline_class
    ]
    loaded = [{part.stage: part for part in chains.load_parts([folder])} for folder in folders]
    return [
        Told(name, plan, [parts[name] for parts in loaded])
        for name, plan in FAMILIES[pipeline_class].parts.items()
    ]


def values_set(pipeline_class: str) -> dict[str, set[Any]]:
    """The settings that at least one comparison of the family sets, with their values."""
    values: dict[str, set[Any]] = {}
    for case in cases_of(pipeline_class):
        _gather(values, case.settings.values())
    if pipeline_class == "StableDiffusionPipeline":
        for test in (*IN_PROCESS, *SERVED):
            for (name, *_), given in _parametrized(test):
                _gather(values, given if name == "settings" else ({name: each} for each in given))
    return values


def number_of(tests: Iterable[Callable[..., Any]]) -> int:
    """How many settings tests compare with each checkpoint."""
    return sum(
        math.prod(len(values) for names, values in _parametrized(test) if names != ["family"])
        for test in tests
    )


def not_taken() -> dict[str, list[str]]:
    """Arguments of the pipelines' calls that no setting stands for, with the families of each."""
    users: dict[str, list[str]] = {}
    for pipeline_class, family in FAMILIES.items():
        arguments = [
            told for stage in stages_of(pipeline_class) for told in stage.arguments.items()
        ]
        taken = {name for full, argument in arguments for name in (full, argument.name)}
        taken |= {f"decoder_{name}" for name in taken}  # as UnCLIPPipeline calls its UNet's
        call = inspect.signature(getattr(diffusers, pipeline_class).__call__)
        for name in call.parameters:
            if name not in taken | ELSEWHERE:
                users.setdefault(name, []).append(family.name)
    return users


def _gather(values: dict[str, set[Any]], given: Iterable[Mapping[str, Any]]) -> None:
    for settings in given:
        for name, value in settings.items():
            values.setdefault(name, set()).add(value)


def _parametrized(test: Any) -> list[tuple[list[str], Sequence[Any]]]:
    marks = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return [(mark.args[0].split(","), list(mark.args[1])) for mark in marks]
