"""The arithmetic of FID, KID and the CLIP score, on features alone.

Own code of a few lines each, held against torchmetrics by the tests: torchmetrics keeps its sums
inside metric objects, which stored reference statistics do not fit into. It knows no network.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from carrara_models.errors import BadFieldError

Array = NDArray[np.float64]
CHUNK_ROWS = 4096
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000


@dataclass(frozen=True, eq=False)
class Gaussian:
    """What FID keeps of a set of features.

    Attributes:
        mean: float64 [D].
        covariance: float64 [D, D], with N - 1 in the denominator.
        count: N.
    """

    mean: Array
    covariance: Array
    count: int

    @cached_property
    def root(self) -> Array:
        """The symmetric square root of the covariance, [D, D]."""
        eigenvalues, vectors = np.linalg.eigh(self.covariance)
        # Rounding leaves tiny negative eigenvalues where there should be zeros.
        return (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T


def fit_gaussian(features: NDArray[np.floating]) -> Gaussian:
    """Mean and covariance of at least 2 features [N, D]; sums in float64."""
    count, width = features.shape
    if count < 2:
        raise BadFieldError("pictures", count, "at least 2: one has no covariance")
    mean = features.mean(axis=0, dtype=np.float64)
    products = np.zeros((width, width))
    for start in range(0, count, CHUNK_ROWS):
        centred = features[start : start + CHUNK_ROWS].astype(np.float64) - mean
        products += centred.T @ centred
    return Gaussian(mean, products / (count - 1), count)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """FID: the squared Fréchet distance of two Gaussians (Eq. 6, Heusel et al. 2017).

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)). The last trace is that of the root of
    C1^(1/2) C2 C1^(1/2), which has the same eigenvalues and is symmetric, so that they are real.

    Raises:
        BadFieldError: One side has no more than D pictures, so that its covariance is singular.
    """
    width = len(first.mean)
    for side in (first, second):
        if side.count <= width:
            raise BadFieldError(
                "pictures",
                side.count,
                f"more than {width}, the features' width, as the covariance is singular otherwise; "
                "KID takes fewer",
            )
    product = first.root @ second.covariance @ first.root
    cross = np.sqrt(np.linalg.eigvalsh(product).clip(min=0)).sum()
    shift = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return float(shift @ shift + traces - 2 * cross)


def kernel_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """The unbiased squared MMD of two sets of features, [M, D] and [N, D].

    Its kernel is (x . y / D + 1)^3 (Eq. 4 and section 4, Bińkowski et al. 2018). It may be below 0.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    within = sum(_mean_off_diagonal(_kernel(side, side)) for side in (first, second))
    return float(within - 2 * _kernel(first, second).mean())


def kernel_distances(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    seed: int,
    subsets: int = KID_SUBSETS,
    subset_size: int | None = None,
) -> Array:
    """`kernel_distance` of random subsets, drawn without replacement; their mean is KID.

    Args:
        seed: Chooses the subsets.
        subset_size: Pictures in each; None = 1000, or half of the smaller set if that is less.

    Returns:
        float64 [subsets].

    Raises:
        BadFieldError: The sets are too small.
    """
    fewest = min(len(first), len(second))
    size = min(KID_SUBSET_SIZE, fewest // 2) if subset_size is None else subset_size
    if not 2 <= size <= fewest:
        raise BadFieldError("subset_size", size, f"2 to {fewest}, the size of the smaller set")
    rng = np.random.default_rng(seed)
    return np.array(
        [
            kernel_distance(
                first[rng.choice(len(first), size, replace=False)],
                second[rng.choice(len(second), size, replace=False)],
            )
            for _ in range(subsets)
        ]
    )


def clip_scores(pictures: NDArray[np.floating], captions: NDArray[np.floating]) -> Array:
    """100 * max(cos, 0) of each picture with its caption, features [N, D] both; float64 [N].

    This is CLIP-S of Hessel et al. 2021 with 100 in place of their weight of 2.5, and without the
    prefix "A photo depicts" that they put before captions. Every pair is cut off at 0 before the
    mean is taken; torchmetrics cuts off the mean instead.
    """
    pictures, captions = (
        side / np.linalg.norm(side, axis=1, keepdims=True)
        for side in (pictures.astype(np.float64), captions.astype(np.float64))
    )
    return 100 * (pictures * captions).sum(axis=1).clip(min=0)


def _kernel(first: Array, second: Array) -> Array:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _mean_off_diagonal(kernel: Array) -> float:
    count = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))
