"""Which captions runs paint to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carrara_models.training.data.settings import DataSettings, open_source
from carrara_models.training.errors import RecipeError
from carrara_models.training.samples import SampleSettings, join, sample_captions
from carrara_models.training.unconditional import UnconditionalSettings

BILINGUAL = DataSettings(languages=("en", "zh"))


def shares(count: int, data: DataSettings) -> dict[str, int]:
    source = open_source(data, height=8, width=8, seed=0)
    chosen = sample_captions(SampleSettings(count=count), data, source)
    return {each.name: len(each.captions) for each in chosen}


def test_languages_share_the_captions() -> None:
    assert shares(5, DataSettings()) == {"": 5}
    assert shares(48, BILINGUAL) == {"en": 24, "zh": 24}
    assert shares(5, BILINGUAL) == {"en": 3, "zh": 2}


def test_a_language_may_have_no_share() -> None:
    assert shares(1, BILINGUAL) == {"en": 1}
    assert shares(0, BILINGUAL) == {}
    assert not join([]).pictures


def test_fewer_than_none_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"samples.count is -1"):
        SampleSettings(count=-1)


def test_plain_ddpm_may_paint_none(runs: Any, tmp_path: Path) -> None:
    runs.train("unconditional", tmp_path, "sample_count=0")
    assert (tmp_path / "model_index.json").exists()
    assert not list(tmp_path.glob("sample*"))
    with pytest.raises(RecipeError, match=r"sample_count is -1; allowed: 0 and up"):
        UnconditionalSettings(sample_count=-1)
