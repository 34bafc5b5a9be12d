"""Numbers with their 95 % intervals, mostly by resampling the pictures. It knows no measure."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution
RESAMPLES = 100


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, *, deviation: float) -> "Estimate":
        """From the value's standard deviation, as if it were distributed normally."""
        return cls(value, value - NORMAL_95 * deviation, value + NORMAL_95 * deviation)


def share(right: NDArray[np.bool_]) -> Estimate:
    """The share of right ones among [N], with Wilson's interval (1927).

    Resampling would give no interval at all where all are right, or none.
    """
    count, value = len(right), float(right.mean())
    z = NORMAL_95**2 / count
    middle = (value + z / 2) / (1 + z)
    reach = np.sqrt(z * value * (1 - value) + z**2 / 4) / (1 + z)
    return Estimate(value, max(0.0, float(middle - reach)), min(1.0, float(middle + reach)))


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A statistic of N items with the interval of the bootstrap (Efron 1979).

    The interval is normal around the value: only the spread of the resamples is taken, not where
    they lie. A resample repeats items, which raises its FID, so that percentiles would lie above.

    Args:
        statistic: Of the items at these places, [N]; some twice, some not at all.
        count: N.
        seed: Chooses the resamples.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, count, size=count)) for _ in range(resamples)]
    return Estimate.of(statistic(np.arange(count)), deviation=float(np.std(values, ddof=1)))


def jackknife(values: NDArray[np.float64], *, size: int, count: int) -> Estimate:
    """The mean of a statistic over random subsets, with the interval of the delete-d jackknife.

    Args:
        values: The statistic of each subset, [S].
        size: Items in a subset, drawn without replacement; less than `count`.
        count: N, the items that subsets were drawn from.
    """
    # Shao and Wu 1989: the variance over subsets, times kept / left out; 1 where half is kept.
    deviation = values.std(ddof=1) * np.sqrt(size / (count - size))
    return Estimate.of(float(values.mean()), deviation=float(deviation))
