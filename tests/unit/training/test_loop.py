import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from carrara_models.training.errors import RecipeError
from carrara_models.training.loop import (
    SKIPPED,
    Ema,
    LoopSettings,
    MicroBatches,
    Pace,
    Samples,
    learning_rate_factor,
    run_loop,
)

SETTINGS = LoopSettings(
    steps=8, batch_size=4, learning_rate=0.01, warmup_steps=2, ema_decay=0.9, bfloat16=False
)
PACE = Pace(workers=0, log_every=2, save_every=4, sample_every=4)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))


def batch_at(positions):
    rows = [torch.randn(3, generator=torch.Generator().manual_seed(n)) for n in positions]
    return {"x": torch.stack(rows)}


def train(folder, network, *, settings=SETTINGS, pace=PACE, resume=False, batch_at=batch_at):
    def loss_of(batch):
        loss = (network(batch["x"]) - batch["x"].sum(-1, keepdim=True)).square().mean()
        return loss, {"twice": 2 * loss}

    sampled = []

    def on_sample(step):
        sampled.append(step)
        return Samples({"weight": network[0].weight.sum().item()})

    assert run_loop(
        network,
        folder=folder,
        settings=settings,
        pace=pace,
        batch_at=batch_at,
        loss_of=loss_of,
        on_sample=on_sample,
        resume=resume,
    )
    return sampled


def state_of(folder):
    state = {}
    for name in ("weights", "ema"):
        for key, tensor in load_file(folder / "snapshot" / f"{name}.safetensors").items():
            state[f"{name} {key}"] = tensor
    optimizer = torch.load(folder / "snapshot" / "optimizer.pt", weights_only=True)
    for index, moments in optimizer["state"].items():
        for key, tensor in moments.items():
            state[f"optimizer {index} {key}"] = tensor
    return state


def test_a_run_in_two_parts_takes_the_same_steps_bit_for_bit(tmp_path):
    whole, parts = make_network(), make_network()
    train(tmp_path / "whole", whole)
    stop_early = Pace(workers=0, log_every=2, save_every=4, sample_every=4, stop_at=4)
    train(tmp_path / "parts", parts, pace=stop_early)
    assert json.loads((tmp_path / "parts/snapshot/state.json").read_text())["step"] == 4
    resumed = make_network()
    train(tmp_path / "parts", resumed, resume=True)
    expected, got = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert expected.keys() == got.keys()
    for key, tensor in expected.items():
        assert torch.equal(tensor, got[key]), key
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_samples_are_drawn_from_the_average_and_training_goes_on_from_the_weights(tmp_path):
    network = make_network()
    assert train(tmp_path, network) == [4, 8]
    averages = load_file(tmp_path / "snapshot" / "ema.safetensors")
    weights = load_file(tmp_path / "snapshot" / "weights.safetensors")
    assert not torch.equal(averages["0.weight"], weights["0.weight"])
    assert torch.equal(network[0].weight, averages["0.weight"])
    lines = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4, 6, 8, 8]
    assert lines[-1]["weight"] == averages["0.weight"].sum().item()
    assert lines[0]["twice"] == pytest.approx(2 * lines[0]["loss"])


def test_frozen_parameters_stay_as_they_were(tmp_path):
    network = make_network()
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    train(tmp_path, network)
    assert torch.equal(network[0].weight, before)


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(tmp_path):
    train(tmp_path, make_network())
    with pytest.raises(FileExistsError, match="resume it"):
        train(tmp_path, make_network())
    other = LoopSettings(steps=8, batch_size=4, learning_rate=0.02, bfloat16=False)
    with pytest.raises(ValueError, match="was made with"):
        train(tmp_path, make_network(), settings=other, resume=True)
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "nowhere", make_network(), resume=True)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    def broken(positions):
        return {"x": torch.full((len(positions), 3), torch.nan)}

    with pytest.raises(FloatingPointError, match="step 1"):
        train(tmp_path, make_network(), batch_at=broken)


def test_the_rate_warms_up_stays_and_decays_to_nearly_zero():
    settings = LoopSettings(
        steps=1000, batch_size=1, learning_rate=1.0, warmup_steps=10, decay_fraction=0.4
    )
    factors = [learning_rate_factor(step, settings) for step in range(1000)]
    assert factors[0] == pytest.approx(0.1)
    assert set(factors[9:600]) == {1.0}
    assert all(later <= earlier for earlier, later in pairwise(factors[600:]))
    assert factors[800] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-4


def test_the_average_of_a_constant_is_the_constant_and_lags_behind_a_change():
    network = make_network()
    ema = Ema(network, decay=0.9)
    before = network[0].weight.detach().clone()
    ema.update(network, step=1000)
    torch.testing.assert_close(ema.shadow["0.weight"], before)
    with torch.no_grad():
        network[0].weight += 1
    ema.update(network, step=1000)
    torch.testing.assert_close(ema.shadow["0.weight"], before + 0.1)


def test_what_was_passed_over_is_counted(tmp_path):
    def sparse(positions):
        return batch_at(positions) | {SKIPPED: torch.tensor([1, 0, 2])}

    train(tmp_path, make_network(), batch_at=sparse)
    lines = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert [line["pictures_skipped"] for line in lines if "loss" in line] == [6, 12, 18, 24]


@pytest.mark.parametrize(("parts", "processes"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_shares_of_all_processes_make_up_the_step(parts, processes):
    settings = LoopSettings(
        steps=3, batch_size=12, learning_rate=1, gradient_accumulation_steps=parts
    )
    shares = [
        MicroBatches(list, settings, process=process, processes=processes)
        for process in range(processes)
    ]
    for step in range(3):
        seen = [n for share in shares for part in range(parts) for n in share[step * parts + part]]
        assert sorted(seen) == list(range(12 * step, 12 * step + 12))
    assert {len(share) for share in shares} == {3 * parts}


def test_a_batch_that_cannot_be_divided_evenly_is_refused(tmp_path):
    uneven = replace(SETTINGS, gradient_accumulation_steps=3)
    with pytest.raises(RecipeError, match="a multiple of 3 does"):
        train(tmp_path, make_network(), settings=uneven)


def test_micro_batches_take_the_same_steps_but_for_rounding(tmp_path):
    whole, divided = make_network(), make_network()
    train(tmp_path / "whole", whole)
    train(tmp_path / "divided", divided, settings=replace(SETTINGS, gradient_accumulation_steps=4))
    for one, other in zip(whole.parameters(), divided.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
