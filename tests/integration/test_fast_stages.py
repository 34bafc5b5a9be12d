"""Stages with fast numerics: what they say of themselves, and that they paint the same picture."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from carrara.tensors import from_numpy, to_numpy
from carrara.v1 import decoder_pb2, stage_pb2, tensor_pb2
from carrara_services import torch_runtime
from carrara_services.serving.settings import Settings, SettingsError
from integration.in_process import Served, encode, events, generate, served
from tiny_checkpoints import build_sd1

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("sd1"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def job(sd1: Path) -> AsyncIterator[stage_pb2.Job]:
    async with served("text-encoder", sd1, numerics="fast") as text_encoder:
        encoded = await encode(text_encoder, "a red circle", "blue")
    assert encoded.provenance.numerics == stage_pb2.NUMERICS_FAST
    # Its work is small, and remembered.
    assert encoded.provenance.precision == tensor_pb2.DATA_TYPE_FLOAT32
    yield stage_pb2.Job(
        conditioning=encoded.conditioning,
        random_state=stage_pb2.RandomState(seed=7),
        arguments=stage_pb2.Arguments(num_inference_steps=4, scheduler="ddim"),
    )


def times_of_change(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.blob")}


async def latents(
    sd1: Path, job: stage_pb2.Job, **settings: Any
) -> tuple[np.ndarray, stage_pb2.Provenance]:
    async with served("generator", sd1, **settings) as generator:
        result = await generate(generator, job)
    return to_numpy(result.sample.tensors["latents"]), result.provenance


async def test_a_fast_stage_says_so_and_makes_nearly_the_same(sd1: Path, job: stage_pb2.Job):
    exact, told = await latents(sd1, job)
    assert (told.numerics, told.engine) == (stage_pb2.NUMERICS_EXACT, "torch")
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.2)):
        fast, told = await latents(sd1, job, numerics="fast", dtype=dtype)
        assert told.numerics == stage_pb2.NUMERICS_FAST
        assert tensor_pb2.DataType.Name(told.precision) == f"DATA_TYPE_{dtype.upper()}"
        assert fast.dtype == np.float32, "samples stay what they were"
        assert np.abs(fast - exact).mean() < tolerance


async def picture(decoder: Served, seed: int) -> np.ndarray:
    """Of drawn latents."""
    contract = (await decoder.describe()).consumes[0].contract
    shape = (1, contract.tensors[0].shape[1], 8, 8)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
    side = 8 * contract.size_factor
    sample = stage_pb2.Sample(
        contract=stage_pb2.Contract(kind=contract.kind, space=contract.space),
        tensors={"latents": from_numpy(drawn)},
        height=side,
        width=side,
    )
    request = decoder_pb2.DecodeRequest(job=stage_pb2.Job(sample=sample))
    *_, result = await events(decoder.stub.Decode(request))
    return to_numpy(result.sample.tensors["image"]).astype(int)


async def test_a_fast_decoder_decodes_what_comes_together_in_batches(sd1: Path):
    async def pictures(**settings: Any) -> tuple[list[np.ndarray], float | None]:
        async with served("decoder", sd1, max_batch_rows=4, **settings) as decoder:
            made = await asyncio.gather(*(picture(decoder, seed) for seed in range(8)))
            registry = decoder.server.metrics.registry
            assert registry.get_sample_value("carrara_steps_total") == 8
            return made, registry.get_sample_value("carrara_tick_rows_count")

    exact, ticks = await pictures()
    assert ticks == 8, "exact ones are decoded alone"
    fast, ticks = await pictures(numerics="fast", dtype="float32", max_wait_ms=1000.0)
    assert ticks <= 4, "two batches of four, where no request is late"
    for one, other in zip(exact, fast, strict=True):
        assert np.abs(one - other).max() <= 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch imports to compile
async def test_a_compiled_stage_has_compiled_before_it_serves_and_the_next_need_not(
    sd1: Path, job: stage_pb2.Job, tmp_path: Path
):
    exact, _ = await latents(sd1, job)
    settings = {"numerics": "fast", "engine": "compile", "dtype": "float32", "max_batch_rows": 2}
    for found in (False, True):
        torch.compiler.reset()  # as a new process has it
        torch._dynamo.utils.counters.clear()
        async with served("generator", sd1, cache_dir=tmp_path, **settings) as generator:
            compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            assert compiled, "something was compiled"
            result = await generate(generator, job)
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
        graphs = torch._dynamo.utils.counters["aot_autograd"]
        hits, misses = graphs["autograd_cache_hit"], graphs["autograd_cache_miss"]
        assert (hits, misses) == ((compiled, 0) if found else (0, compiled))
        assert result.provenance.engine == "compile"
        made = to_numpy(result.sample.tensors["latents"])
        assert np.abs(made - exact).mean() < 1e-3


async def test_a_stage_on_openvino_says_so_and_the_next_start_finds_what_it_compiled(
    sd1: Path, job: stage_pb2.Job, tmp_path: Path
):
    exact, _ = await latents(sd1, job)
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.2)):
        settings = {"numerics": "fast", "engine": "openvino", "dtype": dtype}
        kept: dict[Path, int] = {}
        for _ in range(2):
            made, told = await latents(sd1, job, cache_dir=tmp_path / dtype, **settings)
            assert (told.numerics, told.engine) == (stage_pb2.NUMERICS_FAST, "openvino")
            assert tensor_pb2.DataType.Name(told.precision) == f"DATA_TYPE_{dtype.upper()}"
            assert told.versions["openvino"]
            assert np.abs(made - exact).mean() < tolerance
            files = times_of_change(tmp_path / dtype)
            assert files
            assert kept in ({}, files)
            kept = files


async def test_what_no_engine_compiles_says_that_torch_runs_it(sd1: Path):
    for role in ("text-encoder", "decoder"):
        async with served(role, sd1, numerics="fast", engine="openvino") as stage:
            assert (await stage.describe()).provenance.engine == "torch"


async def test_openvino_missing_names_the_command_that_helps(
    sd1: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SettingsError, match=r"pip install 'carrara\[openvino\]'"):
        async with served("generator", sd1, numerics="fast", engine="openvino"):
            pass


async def test_openvino_is_for_cpus():
    settings = Settings(numerics="fast", engine="openvino", device="cuda")
    with pytest.raises(SettingsError, match="--engine openvino: only on a CPU"):
        torch_runtime.is_exact(settings, device=torch.device("cuda"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"numerics": "exact", "engine": "compile"}, "--engine compile: only with"),
        ({"engine": "compile"}, "--engine compile: only with"),
        ({"numerics": "exact", "engine": "openvino"}, "--engine openvino: only with"),
        (
            {"numerics": "fast", "engine": "openvino", "dtype": "float16"},
            "--dtype: with --engine openvino this CPU computes in float32",
        ),
    ],
)
async def test_what_cannot_be_is_refused(sd1: Path, settings: dict[str, Any], told: str):
    with pytest.raises(SettingsError, match=told):
        async with served("generator", sd1, **settings):
            pass
