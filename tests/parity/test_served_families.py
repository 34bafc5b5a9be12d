"""Every family as processes on pruned folders, chained by the SDK, paints what diffusers paints.

All sides compute with one thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carrara import AsyncCascade, Cascade, ContractError, InvalidArgumentError
from carrara.v1.stage_pb2 import ROLE_TEXT_ENCODER
from carrara_models.checkpoints import open_checkpoint, stages_of_all
from carrara_models.families import STAGE_ROLES
from carrara_models.pruning import prune
from families import CASES
from families.cascade_folders import IN_ONE_FOLDER
from families.case import FamilyCase
from integration.processes import starting

pytestmark = pytest.mark.slow

FIELDS = {"text-encoder": "text_encoders", "generator": "generators", "decoder": "decoders"}
# Pixels go in and pixels come out of both decoders that denoise.
AMBIGUOUS = ("if-three",)


@dataclass(frozen=True)
class Served:
    """A family's stages, each in a process of its own."""

    case: FamilyCase
    addresses: Mapping[str, list[str]]
    cascade: Cascade

    def expected(self, settings: str) -> np.ndarray:
        return self.case.oracle(self.case.folders, self.case.settings[settings])


def name_of(case: FamilyCase) -> str:
    return case.name


@pytest.fixture(scope="module", params=[*CASES.values(), *IN_ONE_FOLDER.values()], ids=name_of)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    torch.set_num_threads(1)
    case = request.param
    pruned: Path = tmp_path_factory.mktemp("pruned")
    with ExitStack() as stack:
        stages = []
        for index, (folder, stage) in enumerate(stages_of_all(case.folders)):
            own = prune(open_checkpoint(folder, stage=stage), output=pruned / f"{index}-{stage}")
            process = starting(STAGE_ROLES[stage], checkpoint=own, flags=("--stage", stage))
            stages.append(stack.enter_context(process))
        addresses: dict[str, list[str]] = {field: [] for field in FIELDS.values()}
        # Backwards: their contracts put them into the right order, where they leave no choice.
        for stage in stages if case.name in AMBIGUOUS else reversed(stages):
            stage.wait_until_ready()
            addresses[FIELDS[stage.role]].append(stage.address)
        yield Served(case, addresses, stack.enter_context(Cascade.connect(**addresses)))


def test_each_process_holds_only_its_own_components(served: Served) -> None:
    loaded = [
        (description.stage, tuple(component.name for component in description.components))
        for _, _, description in served.cascade.descriptions
    ]
    wanted = {stage: tuple(names) for stage, names in served.case.stages.items()}
    assert dict(loaded) == wanted
    encoders = [names for stage, names in loaded if stage == "text-encoder"]
    assert set(encoders) <= {wanted.get("text-encoder")}


async def test_a_choice_of_orders_is_the_callers(served: Served) -> None:
    backwards = {role: stages[::-1] for role, stages in served.addresses.items()}
    if served.case.name in AMBIGUOUS:
        with pytest.raises(ContractError, match="fit in several orders") as refusal:
            await AsyncCascade.connect(**backwards)
        assert all(address in str(refusal.value) for address in backwards["decoders"])
    else:
        async with await AsyncCascade.connect(**backwards) as cascade:
            assert [d for _, _, d in cascade.descriptions if d.role != ROLE_TEXT_ENCODER] == [
                d for _, _, d in served.cascade.descriptions if d.role != ROLE_TEXT_ENCODER
            ]


def test_served_pictures_equal_diffusers(served: Served) -> None:
    for name, settings in served.case.settings.items():
        result = served.cascade.generate(**settings)
        np.testing.assert_array_equal(
            np.asarray(result.images[0].image), served.expected(name), err_msg=name
        )
        assert result.numerics == "exact"


async def test_concurrent_unequal_requests_equal_diffusers(served: Served) -> None:
    names = list(served.case.settings)
    async with await AsyncCascade.connect(**served.addresses) as cascade:
        together: list[Any] = await asyncio.gather(
            *(cascade.generate(**served.case.settings[name]) for name in names)
        )
    for name, result in zip(names, together, strict=True):
        np.testing.assert_array_equal(
            np.asarray(result.images[0].image), served.expected(name), err_msg=name
        )


def test_a_setting_that_the_family_does_not_know_is_refused_with_those_it_knows(
    served: Served,
) -> None:
    settings = dict(next(iter(served.case.settings.values())))
    foreign = "original_size" if served.case.name != "sdxl" else "true_cfg_scale"
    value = (64, 64) if foreign == "original_size" else 2.0
    with pytest.raises(InvalidArgumentError, match=foreign) as refusal:
        served.cascade.generate(**settings, **{foreign: value})
    assert "num_inference_steps" in str(refusal.value)
