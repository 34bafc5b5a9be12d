import numpy as np
import pytest

from carrara_models.evaluation.distances import (
    fit_gaussian,
    frechet_distance,
    kernel_distance,
    kernel_distances,
)
from carrara_models.evaluation.estimates import NORMAL_95, Estimate, bootstrap, jackknife, share


def deviation(estimate):
    return (estimate.high - estimate.low) / (2 * NORMAL_95)


def test_the_bootstrap_of_a_mean_has_the_means_standard_error():
    items = np.random.default_rng(0).standard_normal(400)
    estimate = bootstrap(lambda places: float(items[places].mean()), 400, seed=0, resamples=400)
    assert estimate.value == items.mean()
    assert deviation(estimate) == pytest.approx(items.std() / 20, rel=0.15)
    assert bootstrap(lambda p: float(items[p].mean()), 400, seed=0, resamples=400) == estimate


def test_the_bootstrap_of_fid_spreads_as_fid_of_new_pictures_does():
    truth = fit_gaussian(np.random.default_rng(0).standard_normal((5000, 3)))

    def pictures(seed):
        return 0.5 + np.random.default_rng(seed).standard_normal((200, 3))

    def fid(features):
        return frechet_distance(truth, fit_gaussian(features))

    anew = np.std([fid(pictures(seed)) for seed in range(1, 201)])

    def resampled(seed):
        drawn = pictures(seed)
        return deviation(bootstrap(lambda places: fid(drawn[places]), 200, seed=seed))

    assert np.mean([resampled(seed) for seed in range(1, 11)]) == pytest.approx(anew, rel=0.2)


def test_the_jackknife_of_kid_spreads_as_kid_of_new_pictures_does():
    def pair(seed):
        first, second = np.random.default_rng(seed).standard_normal((2, 60, 3))
        return first + 0.7, second

    anew = np.std([kernel_distance(*pair(seed)) for seed in range(100, 300)])
    for size in (20, 30):
        spreads = [
            deviation(
                jackknife(
                    kernel_distances(*pair(seed), seed=seed, subset_size=size), size=size, count=60
                )
            )
            for seed in range(10)
        ]
        assert np.mean(spreads) == pytest.approx(anew, rel=0.25)


def test_an_interval_is_normal_around_the_value():
    estimate = Estimate.of(2.0, deviation=0.5)
    assert (estimate.low, estimate.high) == pytest.approx((1.02, 2.98), abs=1e-3)


def test_a_share_has_wilsons_interval_which_is_one_at_the_ends_too():
    eight_of_ten = share(np.arange(10) < 8)
    assert (eight_of_ten.value, eight_of_ten.low, eight_of_ten.high) == pytest.approx(
        (0.8, 0.4902, 0.9433), abs=1e-4
    )
    every = share(np.ones(16, dtype=bool))
    assert (every.value, every.low, every.high) == pytest.approx((1, 0.8064, 1), abs=1e-4)
    none = share(np.zeros(16, dtype=bool))
    assert (none.low, none.high) == pytest.approx((0, 1 - 0.8064), abs=1e-4)
