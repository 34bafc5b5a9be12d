import json

import pytest
import torch
from safetensors.torch import load_file

from carrara_models.training.curriculum import Curriculum
from carrara_models.training.generator import (
    GeneratorObjective,
    sample_timesteps,
    sampling_scheduler,
    training_schedule,
)


def test_the_last_timestep_is_all_but_noise():
    signal = training_schedule().alphas_cumprod[-1].sqrt()
    assert signal < 0.01


def test_timesteps_follow_the_wanted_log_snr():
    alphas_cumprod = training_schedule().alphas_cumprod.double()
    log_snrs = (alphas_cumprod / (1 - alphas_cumprod)).log()
    timesteps = sample_timesteps(
        20000,
        log_snrs=log_snrs,
        objective=GeneratorObjective(log_snr_mean=-0.3, log_snr_deviation=1.75, uniform_share=0),
        torch_generator=torch.Generator().manual_seed(0),
    )
    drawn = log_snrs[timesteps]
    assert drawn.mean() == pytest.approx(-0.3, abs=0.05)
    assert drawn.std() == pytest.approx(1.75, abs=0.05)


def test_every_timestep_can_be_drawn_and_none_beyond():
    log_snrs = torch.linspace(1, -1, 5, dtype=torch.float64)
    timesteps = sample_timesteps(
        2000,
        log_snrs=log_snrs,
        objective=GeneratorObjective(log_snr_mean=0, log_snr_deviation=3),
        torch_generator=torch.Generator().manual_seed(0),
    )
    assert set(timesteps.tolist()) == {0, 1, 2, 3, 4}


def test_a_share_of_the_timesteps_is_even():
    log_snrs = torch.linspace(10, -10, 1000, dtype=torch.float64)
    timesteps = sample_timesteps(
        20000,
        log_snrs=log_snrs,
        objective=GeneratorObjective(log_snr_mean=0, log_snr_deviation=0.5, uniform_share=0.25),
        torch_generator=torch.Generator().manual_seed(0),
    )
    # Beyond four deviations there are no normal draws: 4/5 of the range is left to even ones.
    outside = (log_snrs[timesteps].abs() > 2).double().mean()
    assert outside == pytest.approx(0.25 * 0.8, abs=0.01)


def test_the_sampler_starts_at_the_last_timestep():
    scheduler = sampling_scheduler()
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999
    assert len(scheduler.timesteps) == 20


def test_a_run_in_two_parts_gives_the_same_unet_bit_for_bit(
    generator, train_tiny_generator, tmp_path
):
    train_tiny_generator(tmp_path, stop_at=2)
    assert json.loads((tmp_path / "snapshot/state.json").read_text())["step"] == 2
    train_tiny_generator(tmp_path, resume=True)
    file = "unet/diffusion_pytorch_model.safetensors"
    whole, parts = load_file(generator / file), load_file(tmp_path / file)
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_a_warm_start_begins_with_the_averages_of_the_earlier_run(
    generator, train_tiny_generator, tmp_path
):
    curriculum = Curriculum(max_objects=3, languages=("en", "zh"))
    # A rate of zero: the weights stay what the run began with.
    train_tiny_generator(
        tmp_path, stop_at=1, learning_rate=0.0, init=generator, curriculum=curriculum
    )
    file = "unet/diffusion_pytorch_model.safetensors"
    old, new = load_file(generator / file), load_file(tmp_path / file)
    for name, tensor in old.items():
        assert torch.equal(tensor, new[name]), name
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "sample-000001_en.png",
        "sample-000001_zh.png",
    }
    scalars = json.loads((tmp_path / "scalars.jsonl").read_text().splitlines()[-1])
    assert {"all_right_en", "all_right_zh"} <= set(scalars)
