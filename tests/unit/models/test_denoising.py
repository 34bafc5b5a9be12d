from __future__ import annotations

import inspect
import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.nn import functional

from carrara_models.checkpoints import open_checkpoint
from carrara_models.denoising.guidance import guided
from carrara_models.denoising.numerics import exact_rows
from carrara_models.denoising.schedulers import SCHEDULERS, load_samplers
from carrara_models.errors import BadFieldError, CheckpointError

CPU = torch.device("cpu")


def samplers(folder: Path, **config: Any) -> Any:
    path = folder / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text()) | config
    path.write_text(json.dumps(content))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", content["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    return load_samplers(open_checkpoint(folder, stage="generator"), mends_early_configs=True)


def test_exact_rows_are_the_bits_that_each_request_gets_alone() -> None:
    drawn = torch.Generator().manual_seed(0)
    rows = [2, 1, 2, 1, 1]
    vectors = torch.randn(7 * 3, 40, generator=drawn)  # three per row, such as attention heads
    weight = torch.randn(50, 40, generator=drawn)
    images = torch.randn(7, 8, 9, 9, generator=drawn)
    kernel = torch.randn(16, 8, 3, 3, generator=drawn)
    with exact_rows(rows):
        products = functional.linear(vectors, weight)
        convolved = functional.conv2d(input=images, weight=kernel, padding=1)
    for batched, chunks in (
        (products, [functional.linear(v, weight) for v in vectors.split([3 * r for r in rows])]),
        (convolved, [functional.conv2d(i, kernel, padding=1) for i in images.split(rows)]),
    ):
        torch.testing.assert_close(batched, torch.cat(chunks), rtol=0, atol=0)


ACTIVATIONS = (
    functional.silu,
    partial(functional.silu, inplace=True),
    partial(functional.gelu, approximate="tanh"),
    functional.mish,
    functional.softplus,
    torch.sigmoid,
    torch.Tensor.sigmoid,
)


# Without addresses, so that every process that collects them finds the same names.
@pytest.mark.parametrize(
    "activation", ACTIVATIONS, ids=lambda each: re.sub(" at 0x[0-9a-f]+", "", str(each))
)
@pytest.mark.parametrize(("width", "threads"), [(112, 1), (32 * 1025, 2), (64 * 64 * 32, 3)])
def test_exact_rows_hold_for_activations_of_any_width(
    activation: Any, width: int, threads: int
) -> None:
    drawn = torch.Generator().manual_seed(0)
    rows = [2, 1, 3, 1]
    batch = 2 * torch.randn(sum(rows), width, generator=drawn)
    used = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = torch.cat([activation(chunk.clone()) for chunk in batch.split(rows)])
        plain = activation(batch.clone())
        with exact_rows(rows):
            together = activation(batch.clone())
    finally:
        torch.set_num_threads(used)
    assert not torch.equal(plain, alone), "here nothing depends on the batch: test another width"
    assert torch.equal(together, alone)


def test_exact_rows_leave_activations_of_what_is_no_batch() -> None:
    gate = torch.tensor([0.5])
    with exact_rows([1, 2]):
        assert torch.equal(gate.sigmoid(), torch.sigmoid(torch.tensor([0.5])))


def test_exact_rows_call_the_kernels_once_per_request() -> None:
    layer = torch.nn.Linear(4, 4)
    with torch.profiler.profile() as profile, exact_rows([1, 2]):
        layer(torch.zeros(3, 4))
    calls = [event.count for event in profile.key_averages() if event.key == "aten::linear"]
    assert calls == [2]


def test_exact_rows_touch_no_other_thread() -> None:
    layer, batch = torch.nn.Linear(4, 4), torch.zeros(4, 4)
    with exact_rows([1, 2]), ThreadPoolExecutor(1) as pool:
        assert pool.submit(layer, batch).result().shape == (4, 4)
        with pytest.raises(RuntimeError, match="multiple of 3 rows"):
            layer(batch)


def test_exact_rows_refuse_what_they_cannot_take_apart() -> None:
    with exact_rows([1, 2]), pytest.raises(RuntimeError, match="multiple of 3 rows"):
        functional.linear(torch.zeros(4, 2), torch.zeros(2, 2))


def test_guidance_moves_from_the_negative_half_through_the_positive() -> None:
    output = torch.tensor([[1.0], [3.0]])
    torch.testing.assert_close(guided(output, 2.0), torch.tensor([[5.0]]))
    torch.testing.assert_close(guided(output, 1.0), torch.tensor([[3.0]]))


def test_every_name_makes_a_new_scheduler_of_its_class(sd2: Path) -> None:
    known = samplers(sd2)
    assert known.names[0] == "ddim"
    assert set(known.names) == set(SCHEDULERS)
    for name, (class_name, _) in SCHEDULERS.items():
        first, second = (known.new(name, num_inference_steps=3, device=CPU) for _ in range(2))
        assert type(first) is getattr(diffusers, class_name)
        assert first is not second
        assert first.config.prediction_type == "v_prediction"
        assert first.config.beta_schedule == "scaled_linear"


@pytest.mark.parametrize("class_name", sorted({known for known, _ in SCHEDULERS.values()}))
def test_what_one_scheduler_has_stepped_no_other_has(sd2: Path, class_name: str) -> None:
    known = samplers(sd2, _class_name=class_name)
    one, late, *others = (known.new(None, num_inference_steps=5, device=CPU) for _ in range(4))
    noise = torch.randn(1, 4, 4, 4)

    def steps(scheduler: Any) -> list[torch.Tensor]:
        x, seen = noise, []
        draws = "generator" in inspect.signature(scheduler.step).parameters
        options = {"generator": torch.Generator().manual_seed(0)} if draws else {}
        for timestep in scheduler.timesteps:
            given = scheduler.scale_model_input(x, timestep)
            x = scheduler.step(0.5 * given, timestep, x, **options).prev_sample
            seen.append(x)
        return seen

    alone = type(known.own).from_config(known.own.config)
    alone.set_timesteps(5)
    expected = steps(alone)
    for scheduler in (one, late, known.new(None, num_inference_steps=5, device=CPU), *others):
        assert all(map(torch.equal, steps(scheduler), expected))


def test_karras_sigmas_are_those_of_the_name_alone(sd1: Path) -> None:
    known = samplers(sd1, _class_name="EulerDiscreteScheduler", use_karras_sigmas=True)
    uses = {
        name: known.new(name, num_inference_steps=3, device=CPU).config.get("use_karras_sigmas")
        for name in ("euler", "dpm++2m", "dpm++2m-karras", "heun")
    }
    # The checkpoint's own scheduler keeps its own config.
    assert uses == {"euler": True, "dpm++2m": False, "dpm++2m-karras": True, "heun": False}


def test_a_scheduler_that_is_none_of_the_ten_goes_by_its_class(sd1: Path) -> None:
    known = samplers(sd1, _class_name="DEISMultistepScheduler")
    assert known.names[0] == "DEISMultistepScheduler"
    for name in (None, "DEISMultistepScheduler"):
        own = known.new(name, num_inference_steps=3, device=CPU)
        assert isinstance(own, diffusers.DEISMultistepScheduler)


def test_early_configs_are_mended_as_the_pipeline_mends_them(sd1: Path) -> None:
    known = samplers(sd1, _class_name="DDIMScheduler", steps_offset=0, clip_sample=True)
    config = known.new(None, num_inference_steps=3, device=CPU).config
    assert (config.steps_offset, config.clip_sample) == (1, False)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 20])
def test_runge_kutta_rounds_of_pndm_need_four_steps(sd1: Path, steps: int) -> None:
    known = samplers(sd1, skip_prk_steps=False)
    if steps < 4:
        with pytest.raises(BadFieldError, match="num_inference_steps"):
            known.new(None, num_inference_steps=steps, device=CPU)
    else:
        assert len(known.new(None, num_inference_steps=steps, device=CPU).timesteps) == steps + 9


def test_a_default_scheduler_that_nobody_knows_is_refused(sd1: Path) -> None:
    manifest = {"format": 1, "defaults": {"scheduler": "ddmp"}}
    (sd1 / "carrara.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="'ddmp'; known: ddpm"):
        samplers(sd1)
