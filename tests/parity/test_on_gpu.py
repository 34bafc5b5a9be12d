"""Every family on a CUDA GPU: near the CPU's exact pictures, alone and in company.

CI has no GPU: these tests are skipped there, and have to be run by hand where there is one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import chains
from carrara_models.acceleration.cuda_graphs import Replayed
from carrara_models.acceleration.fast import Engine, made_fast
from carrara_models.acceleration.networks import networks_of
from carrara_models.acceleration.warm_up import WarmedForward, warming_up
from carrara_models.errors import NumericalError
from carrara_models.parts import Denoiser
from carrara_services.denoising.engine import DenoisingEngine
from carrara_services.denoising.memory_probe import CudaMemory
from families import CASES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


CUDA = torch.device("cuda")
# Of 255 levels, on average. The networks are tiny and of random weights, which makes much of
# little; convolutions are in TF32, as torch has them unless told otherwise.
MEAN_IN_FLOAT32 = 1.0
MEAN_IN_HALF_PRECISION = {
    "if": 30.0,
    "if-base": 30.0,
    "kandinsky": 25.0,
    "kandinsky-learned-variance": 12.0,
    "unclip": 9.0,
}
MEAN_OF_OTHERS = 4.0
# Its tiny super-resolution leaves what float16 can hold, and says so.
OVERFLOWS_IN_FLOAT16 = {"if"}


@functools.cache
def exact(name: str) -> list[np.ndarray]:
    case = CASES[name]
    parts = chains.load_parts(case.folders)
    return [chains.paint(parts, settings) for settings in case.settings.values()]


def fast_parts(name: str, dtype: torch.dtype, engine: Engine = "torch") -> list[Any]:
    parts = chains.load_parts(CASES[name].folders, dtype=dtype, device=CUDA)
    return [made_fast(part, engine=engine, tile_size=1024) for part in parts]


def apart(parts: Sequence[Any], name: str) -> float:
    """The largest mean difference of a picture from the exact one."""
    return max(
        float(np.abs(chains.paint(parts, settings).astype(int) - expected).mean())
        for settings, expected in zip(CASES[name].settings.values(), exact(name), strict=True)
    )


@pytest.mark.parametrize("name", CASES)
def test_pictures_in_float32_are_near_the_exact_ones(name: str) -> None:
    assert apart(fast_parts(name, torch.float32), name) <= MEAN_IN_FLOAT32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_pictures_in_half_precision_are_near_the_exact_ones(name: str, dtype: torch.dtype) -> None:
    most = MEAN_IN_HALF_PRECISION.get(name, MEAN_OF_OTHERS)
    if dtype == torch.float16 and name in OVERFLOWS_IN_FLOAT16:
        with pytest.raises(NumericalError):
            apart(fast_parts(name, dtype), name)
        return
    assert apart(fast_parts(name, dtype), name) <= most


@pytest.mark.parametrize("name", CASES)
def test_company_changes_samples_by_rounding_alone(name: str) -> None:
    parts = fast_parts(name, torch.float32)
    columns = [chains.requests(parts, settings) for settings in CASES[name].settings.values()]
    (part, *_), wanted = zip(*(column[0] for column in columns), strict=True)
    together, shared = chains.run_together(part, list(wanted))
    assert shared
    for request, sample in zip(wanted, together, strict=True):
        alone, _ = chains.run_together(part, [request])
        for tensor in sample.tensors:
            torch.testing.assert_close(
                sample.tensors[tensor], alone[0].tensors[tensor], rtol=5e-2, atol=5e-2
            )


@pytest.mark.parametrize("name", ["sd", "sdxl", "if-base", "sd3"])
def test_replayed_calls_give_what_the_network_gives(name: str) -> None:
    plain, compiled = fast_parts(name, torch.float32), fast_parts(name, torch.float32, "compile")
    settings = next(iter(CASES[name].settings.values()))
    calls = chains.requests(plain, settings)
    part = next(part for part, _ in calls if isinstance(part, Denoiser))
    (other, request) = next(
        (part, request)
        for part, request in chains.requests(compiled, settings)
        if isinstance(part, Denoiser)
    )
    networks = list(networks_of(other).values())
    with torch.inference_mode():
        with warming_up(networks):
            other.predict([other.start(request)])
        (forward,) = [
            one
            for each in networks
            if isinstance(each.forward, WarmedForward)
            for one in each.forward.forwards.values()
        ]
        assert isinstance(forward, Replayed)
        for jobs in (1, 2, 2, 2, 3, 3, 1, 1, 2):
            expected = part.predict([part.start(request)] * jobs)
            given = other.predict([other.start(request)] * jobs)
            for one, two in zip(given, expected, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2)
    assert sum(graph is not None for graph in forward._graphs.values()) >= 3


async def test_the_batch_is_fitted_into_the_memory() -> None:
    (part,) = [part for part in fast_parts("sd", torch.float16) if isinstance(part, Denoiser)]
    engine = DenoisingEngine(
        part, role="generator", max_queue_jobs=4, max_batch_rows=32, memory=CudaMemory(CUDA)
    )
    try:
        await engine.warm_up()
        assert engine.max_batch_rows == 32  # of so small a network, any GPU has room for as many
    finally:
        engine.close()
