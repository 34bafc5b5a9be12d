"""The worked example of docs/families.md: entered as its text says, it passes the families' tests.

Those are called here, as the example's case is entered for these tests alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from carrara import Cascade
from carrara_models.checkpoints import family_of
from carrara_models.errors import CheckpointError
from carrara_models.families import FAMILIES
from families import CASES
from families.example_case import CASE
from families.example_row import ROW
from parity import test_families


@pytest.fixture(autouse=True)
def _entered(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    for pipeline_class, family in ROW.items():
        with pytest.raises(CheckpointError):
            family_of(pipeline_class, CASE.folders[0])
        monkeypatch.setitem(FAMILIES, pipeline_class, family)
    monkeypatch.setitem(CASES, CASE.name, CASE)


@pytest.mark.parametrize("settings", CASE.settings)
def test_picture_equals_diffusers(settings: str) -> None:
    test_families.test_picture_equals_diffusers(CASE, settings)


@pytest.mark.parametrize(
    "check",
    [
        test_families.test_oracle_paints_something_else_for_each_settings,
        test_families.test_unequal_jobs_in_one_batch_equal_their_solo_runs,
        test_families.test_each_part_loads_only_its_own_components,
    ],
    ids=lambda check: check.__name__.removeprefix("test_"),
)
def test_what_holds_of_every_family_holds_of_the_example(check: Callable[[str], None]) -> None:
    check(CASE.name)


def test_services_and_sdk_take_it_as_they_are() -> None:
    with Cascade.embedded(*CASE.folders) as cascade:
        for name, settings in CASE.settings.items():
            result = cascade.generate(**settings)
            np.testing.assert_array_equal(
                np.asarray(result.images[0].image), test_families.painted(CASE.name, name)
            )
            assert result.numerics == "exact"
            assert not result.warnings
        (told,) = cascade.generate(**settings, negative_prompt="blue").warnings
        assert told.code == "NEGATIVE_PROMPT_UNUSED"
