"""Every family's parts, loaded one by one and chained, paint what diffusers paints, bit for bit.

So do those of cascade folders, and of what ships.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

import chains
from carrara_models.denoising.run import run_alone
from carrara_models.parts import Denoiser
from families import CASES
from families.cascade_folders import IN_ONE_FOLDER
from families.case import FamilyCase

NAMES = (*CASES, *IN_ONE_FOLDER)
EACH = [
    pytest.param(case, name, id=f"{case.name}-{name}")
    for case in (*CASES.values(), *IN_ONE_FOLDER.values())
    for name in case.settings
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def case_of(name: str) -> FamilyCase:
    return CASES[name] if name in CASES else IN_ONE_FOLDER[name]


@functools.lru_cache(maxsize=2)
def parts_of(name: str) -> list[Any]:
    return chains.load_parts(case_of(name).folders)


@functools.lru_cache(maxsize=16)
def painted(name: str, settings: str) -> np.ndarray:
    case = case_of(name)
    return case.oracle(case.folders, case.settings[settings])


@pytest.mark.parametrize(("case", "settings"), EACH)
def test_picture_equals_diffusers(case: Any, settings: str) -> None:
    expected = painted(case.name, settings)
    np.testing.assert_array_equal(
        chains.paint(parts_of(case.name), case.settings[settings]), expected
    )


@pytest.mark.parametrize("name", NAMES)
def test_oracle_paints_something_else_for_each_settings(name: str) -> None:
    pictures = [painted(name, settings) for settings in case_of(name).settings]
    for i, picture in enumerate(pictures):
        assert picture.std() > 1, "hardly anything can be seen"
        for other in pictures[i + 1 :]:
            assert picture.shape != other.shape or (picture != other).mean() > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_unequal_jobs_in_one_batch_equal_their_solo_runs(name: str) -> None:
    """At every denoiser of the chain, all of the case's settings share a batch."""
    parts, case = parts_of(name), case_of(name)
    columns = [chains.requests(parts, settings) for settings in case.settings.values()]
    samples: list[Any] = [None for _ in columns]
    for requests in zip(*columns, strict=True):
        part = requests[0][0]
        if not isinstance(part, Denoiser):
            samples = [chains.decoded(sample, part.decode([sample])[0]) for sample in samples]
            continue
        wanted = [
            chains.following(request, sample)
            for (_, request), sample in zip(requests, samples, strict=True)
        ]
        alone = [run_alone(part, request) for request in wanted]
        together, shared = chains.run_together(part, wanted)
        assert shared, f"no two jobs shared a batch of the {part.stage}"
        for both, single in zip(together, alone, strict=True):
            assert both.tensors.keys() == single.tensors.keys()
            for tensor in both.tensors:
                torch.testing.assert_close(
                    both.tensors[tensor], single.tensors[tensor], rtol=0, atol=0
                )
            assert torch.equal(both.random_state, single.random_state)
        samples = alone


@pytest.mark.parametrize("name", NAMES)
def test_each_part_loads_only_its_own_components(name: str) -> None:
    loaded = {
        part.stage: tuple(component.name for component in part.components)
        for part in chains.load_parts(case_of(name).folders)
    }
    assert loaded == {stage: tuple(names) for stage, names in case_of(name).stages.items()}
