"""The probe for how many rows fit, on a device whose memory is a formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from carrara_models.checkpoints import open_checkpoint
from carrara_models.families import load_part
from carrara_services.denoising.engine import DenoisingEngine
from carrara_services.denoising.memory_probe import USED_SHARE, rows_that_fit
from tiny_checkpoints import build_sd1


@dataclass
class Formula:
    """A device for which a call takes `fixed` bytes, and `per_row` for each row."""

    fixed: int
    per_row: int
    total: int
    calls: list[int] = field(default_factory=list)

    def call(self, rows: int) -> None:
        self.calls.append(rows)

    def free(self) -> int:
        return self.total

    def peak_of(self, call: Callable[[], object]) -> int:
        call()
        return self.fixed + self.per_row * self.calls[-1]


@pytest.mark.parametrize(
    ("fixed", "per_row", "fits"),
    [
        (0, 100, 8),
        (100, 100, 7),
        (0, 99, 8),
        (0, 10, 32),  # no more than is asked for
        (0, 0, 32),
        (900, 100, 2),  # one job in any case
        (0, 1000, 2),
    ],
)
def test_as_many_rows_as_fit_into_what_is_free(fixed: int, per_row: int, fits: int) -> None:
    device = Formula(fixed=fixed, per_row=per_row, total=round(800 / USED_SHARE))
    assert rows_that_fit(device.call, memory=device, rows=2, most=32) == fits
    assert max(device.calls) == 4, "it must not itself take more than is there"


@dataclass
class Peaks:
    """A device that gives what it is told to; an error in place of a number is raised."""

    peaks: list[int | Exception]

    def free(self) -> int:
        return round(1000 / USED_SHARE)

    def peak_of(self, call: Callable[[], object]) -> int:
        call()
        peak = self.peaks.pop(0)
        if isinstance(peak, Exception):
            raise peak
        return peak


@pytest.mark.parametrize(
    ("peaks", "rows"),
    [([200, 400], 10), ([100, 101], 32), ([200, torch.OutOfMemoryError("no memory")], 2)],
)
async def test_a_stage_fits_its_batch_into_the_memory_before_it_serves(
    tmp_path: Path, peaks: list[int | Exception], rows: int
) -> None:
    checkpoint = open_checkpoint(build_sd1(tmp_path / "sd1"), stage="generator")
    part = load_part(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    engine = DenoisingEngine(
        part, role="generator", max_queue_jobs=4, max_batch_rows=32, memory=Peaks(peaks)
    )
    await engine.warm_up()
    assert engine.max_batch_rows == rows
    engine.close()
