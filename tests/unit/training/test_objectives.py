from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from carrara_models.training.objectives import (
    TRAIN_TIMESTEPS,
    Objective,
    Target,
    add_noise,
    build_schedule,
    loss_of,
    loss_weights,
    sample_timesteps,
    target_of,
)

TARGETS = get_args(Target)


def objective(target: Any, **changes: Any) -> Objective:
    times = "logit-normal" if target == "flow" else "log-snr-normal"
    return Objective(**{"target": target, "times": times, "mean": 0.0, **changes})


@pytest.mark.parametrize("target", TARGETS)
def test_one_step_from_the_true_prediction_finds_the_clean_sample(target: Any) -> None:
    """The target is what diffusers' own scheduler takes it for."""
    chosen = objective(target)
    schedule = build_schedule(chosen)
    generator = torch.Generator().manual_seed(0)
    samples, noise = (torch.randn(1, 3, 4, 4, generator=generator) for _ in range(2))
    schedule.set_timesteps(4)
    for t in schedule.timesteps[1:]:
        timesteps = t.reshape(1)
        options = {"schedule": schedule, "objective": chosen}
        noisy = add_noise(samples, noise, timesteps, **options)
        wanted = target_of(samples, noise, timesteps, **options)
        if target == "flow":
            found = noisy - (t / TRAIN_TIMESTEPS) * wanted
        else:
            found = schedule.step(wanted, t, noisy).pred_original_sample
        torch.testing.assert_close(found, samples, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("times", ["uniform", "logit-normal", "log-snr-normal"])
def test_timesteps_stay_in_range_and_follow_the_seed(target: Any, times: Any) -> None:
    if target == "flow" and times == "log-snr-normal":
        with pytest.raises(ValueError, match="no signal-to-noise ratios"):
            objective(target, times=times)
        return
    chosen = objective(target, times=times)
    schedule = build_schedule(chosen)

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sample_timesteps(
            4000, schedule=schedule, objective=chosen, torch_generator=generator
        )

    timesteps = draw(1)
    assert torch.equal(timesteps, draw(1))
    assert not torch.equal(timesteps, draw(2))
    assert timesteps.min() >= 0
    assert timesteps.max() <= (TRAIN_TIMESTEPS if target == "flow" else TRAIN_TIMESTEPS - 1)
    assert timesteps.is_floating_point() == (target == "flow")


def test_normal_times_gather_around_their_mean_and_some_are_even() -> None:
    chosen = objective("v_prediction", times="logit-normal", deviation=0.1, uniform_share=0.25)
    timesteps = sample_timesteps(
        20000,
        schedule=build_schedule(chosen),
        objective=chosen,
        torch_generator=torch.Generator().manual_seed(0),
    )
    near = ((timesteps - 500).abs() < 100).double().mean()
    # All normal draws, and a fifth of the even quarter.
    assert near == pytest.approx(0.75 + 0.25 * 0.2, abs=0.02)


def test_min_snr_weights_are_the_papers() -> None:
    timesteps = torch.tensor([5, 300, 900])
    schedule = build_schedule(objective("epsilon"))
    alphas = schedule.alphas_cumprod[timesteps]
    snr = alphas / (1 - alphas)
    assert snr[0] > 5 > snr[2]
    bounded = snr.clamp(max=5)
    expected = {"epsilon": bounded / snr, "sample": bounded, "v_prediction": bounded / (snr + 1)}
    for target, weights in expected.items():
        chosen = objective(target, min_snr_gamma=5.0)
        found = loss_weights(timesteps, schedule=build_schedule(chosen), objective=chosen)
        torch.testing.assert_close(found, weights)
    with pytest.raises(ValueError, match="min_snr_gamma"):
        objective("flow", min_snr_gamma=5.0)


def test_the_weighted_losses_of_all_targets_weigh_the_same_error_alike() -> None:
    """An error in the clean sample is worth min(SNR, gamma), whatever is predicted."""
    generator = torch.Generator().manual_seed(0)
    samples, noise, error = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(3))
    timesteps = torch.tensor([200, 700])
    losses = []
    for target in ("epsilon", "sample", "v_prediction"):
        chosen = objective(target, min_snr_gamma=5.0)
        options: dict[str, Any] = {"schedule": build_schedule(chosen), "objective": chosen}
        alphas = options["schedule"].alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        noisy = add_noise(samples, noise, timesteps, **options)
        wrong = samples + error
        wrong_noise = (noisy - alphas.sqrt() * wrong) / (1 - alphas).sqrt()
        predicted = target_of(wrong, wrong_noise, timesteps, **options)
        wanted = target_of(samples, noise, timesteps, **options)
        losses.append(loss_of(predicted, wanted, timesteps, **options))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses[2], losses[1], rtol=1e-3, atol=1e-5)
