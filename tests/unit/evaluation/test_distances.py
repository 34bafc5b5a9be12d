import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from carrara_models.errors import BadFieldError
from carrara_models.evaluation.distances import (
    Gaussian,
    clip_scores,
    fit_gaussian,
    frechet_distance,
    kernel_distance,
    kernel_distances,
)


class Given(nn.Module):
    """Stands for a network in torchmetrics: the features are the input."""

    num_features = 5

    def forward(self, features):
        return features


def draw(count, *, seed, width=5, shift=0.0):
    """Correlated features, of another covariance for every seed."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) + shift


def fid(first, second):
    return frechet_distance(fit_gaussian(first), fit_gaussian(second))


# A flat axis costs half the digits: rounding leaves eps where 0 should be, and its root counts.
@pytest.mark.parametrize(("flat", "tolerance"), [(False, 1e-12), (True, 1e-7)])
def test_fid_is_the_closed_form_of_gaussians_with_common_axes(flat, tolerance):
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    first, second = rng.uniform(0, 3, 6), rng.uniform(0, 3, 6)
    if flat:
        first[0] = second[1] = 0
    shift = rng.standard_normal(6)
    distance = frechet_distance(
        Gaussian(np.zeros(6), axes * first @ axes.T, 100),
        Gaussian(shift, axes * second @ axes.T, 100),
    )
    expected = shift @ shift + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert distance == pytest.approx(expected, rel=tolerance)


def test_fid_is_the_closed_form_of_any_two_gaussians_in_the_plane():
    first = np.array([[2.0, 0.7], [0.7, 1.0]])
    second = np.array([[1.0, -0.9], [-0.9, 3.0]])
    # In two dimensions tr(M^(1/2)) = (tr(M) + 2 det(M)^(1/2))^(1/2), by Cayley and Hamilton.
    product = first @ second
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 25 + np.trace(first) + np.trace(second) - 2 * cross
    distance = frechet_distance(
        Gaussian(np.zeros(2), first, 9), Gaussian(np.array([3.0, 4.0]), second, 9)
    )
    assert distance == pytest.approx(expected, rel=1e-12)


def test_fid_of_a_shift_and_of_a_stretch_is_known():
    features = draw(60, seed=1)
    assert fid(features, features) == pytest.approx(0, abs=1e-9)
    assert fid(features + np.array([3, 0, 4, 0, 0]), features) == pytest.approx(25)
    mean = features.mean(axis=0)
    stretched = mean + 1.5 * (features - mean)
    assert fid(stretched, features) == pytest.approx(
        0.25 * fit_gaussian(features).covariance.trace()
    )


@pytest.mark.parametrize("counts", [(6, 6), (50, 40), (500, 300)])
def test_fid_is_that_of_torchmetrics(counts):
    ours, theirs = (draw(count, seed=seed, shift=seed) for seed, count in enumerate(counts))
    metric = FrechetInceptionDistance(feature=Given())
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(theirs), real=True)
    metric.update(torch.from_numpy(ours), real=False)
    assert fid(ours, theirs) == pytest.approx(float(metric.compute()), rel=1e-7)


def test_fid_is_symmetric_and_blind_to_the_order_of_pictures():
    first, second = draw(40, seed=1), draw(40, seed=2)
    assert fid(first, second) == pytest.approx(fid(second, first), rel=1e-9)
    assert fid(first[::-1], second) == pytest.approx(fid(first, second), rel=1e-9)


def test_fid_falls_with_the_count_of_equally_distributed_pictures():
    distances = [
        np.mean(
            [fid(*np.random.default_rng(seed).standard_normal((2, count, 4))) for seed in range(20)]
        )
        for count in (10, 40, 160)
    ]
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 0


def test_means_and_covariances_are_numpys_over_chunks_and_far_from_zero(monkeypatch):
    monkeypatch.setattr("carrara_models.evaluation.distances.CHUNK_ROWS", 7)
    features = (draw(30, seed=3) + 1000).astype(np.float32)
    gaussian = fit_gaussian(features)
    exact = features.astype(np.float64)
    assert np.allclose(gaussian.mean, exact.mean(axis=0), rtol=1e-12)
    assert np.allclose(gaussian.covariance, np.cov(exact.T), rtol=1e-9)
    assert gaussian.count == 30


def test_fid_of_too_few_pictures_is_refused_and_points_to_kid():
    enough, few = draw(6, seed=0), draw(5, seed=1)
    for pair in ((enough, few), (few, enough)):
        with pytest.raises(BadFieldError, match=r"5 is not allowed; allowed: more than 5.*KID"):
            fid(*pair)
    with pytest.raises(BadFieldError, match="at least 2"):
        fit_gaussian(few[:1])


@pytest.mark.parametrize("count", [4, 50])
def test_kid_is_that_of_torchmetrics(count):
    ours, theirs = draw(count, seed=1), draw(count, seed=2, shift=1)
    with pytest.warns(UserWarning, match="large memory footprint"):
        metric = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=count)
    metric.update(torch.from_numpy(theirs), real=True)
    metric.update(torch.from_numpy(ours), real=False)
    expected = float(metric.compute()[0])
    assert kernel_distance(ours, theirs) == pytest.approx(expected, rel=1e-5)
    whole = kernel_distances(ours, theirs, seed=0, subsets=3, subset_size=count)
    assert whole == pytest.approx([expected] * 3, rel=1e-5)


def test_kid_of_few_pictures_is_right_by_hand():
    # Width 1, kernel (xy + 1)^3: within {0, 1} it is 1, within {2, 3} 343, across 1, 1, 27, 64.
    first, second = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    assert kernel_distance(first, second) == 1 + 343 - 2 * (1 + 1 + 27 + 64) / 4


def test_kid_is_unbiased_however_few_the_pictures():
    values = []
    for seed in range(400):
        first, second = np.random.default_rng(seed).standard_normal((2, 4, 3))
        values.append(kernel_distance(first, second))
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0 < max(values)


def test_kid_by_subsets_is_that_of_all_pictures_on_average_and_depends_on_the_seed_alone():
    first, second = draw(80, seed=1), draw(60, seed=2, shift=2)
    values = kernel_distances(first, second, seed=0, subsets=400)
    assert values.mean() == pytest.approx(kernel_distance(first, second), rel=0.05)
    assert (values == kernel_distances(first, second, seed=0, subsets=400)).all()
    assert (values != kernel_distances(first, second, seed=1, subsets=400)).all()


def test_subsets_that_the_sets_cannot_fill_are_refused():
    for size in (1, 5):
        with pytest.raises(BadFieldError, match="2 to 4"):
            kernel_distances(draw(4, seed=0), draw(9, seed=1), seed=0, subset_size=size)
    with pytest.raises(BadFieldError, match="subset_size: 1 "):
        kernel_distances(draw(3, seed=0), draw(9, seed=1), seed=0)


def test_clip_scores_are_cosines_times_100_and_never_negative():
    pictures = np.array([[2.0, 0], [0, 3], [1, 1], [1, 0]])
    captions = np.array([[5.0, 0], [4, 0], [0, 2], [-1, 0.5]])
    assert clip_scores(pictures, captions) == pytest.approx([100, 0, 100 / np.sqrt(2), 0])
