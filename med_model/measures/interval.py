"""Compute the 95% confidence interval of a figure, and of the difference between two models."""

import functools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000  # number of resamples of the bootstrap
PERCENTILES = (2.5, 97.5)  # the ends of a 95% interval
NORMAL_QUANTILE = 1.96  # the 97.5% quantile of the standard normal distribution, for a 95% interval


class Measure(NamedTuple):
    """A measure, stored as the sum of amounts and the sum of weights for each group of items.

    The value of the measure is sum(amounts) / sum(weights). An item is, for example, an answer or a preference pair.
    Items that are not independent form one group, for example the pairs with the same chosen answer.
    """

    amounts: np.ndarray  # (groups,)
    weights: np.ndarray  # (groups,)
    items: int  # number of items in all groups


class Figure(NamedTuple):
    """A value, its 95% interval from `low` to `high`, and the number of measured items."""

    value: float
    low: float
    high: float
    n: int


def measure(
    amounts: Sequence[float], weights: Sequence[float] | None = None, groups: Sequence[Hashable] | None = None
) -> Measure:
    """Return the sums of amounts and weights per group (two float arrays), and the number of items.

    amounts, weights and groups: (items,). Without `weights` each weight is 1, so the value of the measure is the mean
    of the amounts. Items with the same value in `groups` form one group. Without `groups`, each item is one group.
    """
    weights = np.ones(len(amounts)) if weights is None else np.asarray(weights, float)
    amounts = np.asarray(amounts, float)
    if groups is None:
        return Measure(amounts, weights, len(amounts))
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_numbers = [numbers[group] for group in groups]
    return Measure(np.bincount(group_numbers, amounts), np.bincount(group_numbers, weights), len(amounts))


@functools.lru_cache(maxsize=32)
def _draws(groups: int) -> np.ndarray:
    """Return the number of times that each resample draws each group: float32, (RESAMPLES, groups).

    The draws depend only on the number of groups. So each resample draws the same groups for two models, and the
    models can be compared in each resample.
    """
    return np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES).astype(np.float32)


def _resampled(measured: Measure) -> np.ndarray:
    """Return the value of the measure in each resample, (RESAMPLES,)."""
    draws = _draws(len(measured.amounts))
    # If a resample draws only groups of weight 0, 1e-9 avoids a division by 0.
    return (draws @ measured.amounts) / np.maximum(draws @ measured.weights, 1e-9)


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95% score interval of a share of n items (Wilson 1927).

    Even for a share of 0 or 1, the low end is below the high end.
    """
    z = NORMAL_QUANTILE
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def figure(measured: Measure) -> Figure:
    """Return the value of a measure and its 95% bootstrap interval (Efron 1979).

    The bootstrap resamples groups of items (see `Measure`). If the value is 0 or 1 and the bootstrap interval has no
    width, return Wilson's interval instead, with the number of groups as n.
    """
    value = float(measured.amounts.sum() / measured.weights.sum())
    low, high = map(float, np.percentile(_resampled(measured), PERCENTILES))
    if low == high and value in (0.0, 1.0):
        low, high = map(float, _wilson(value, len(measured.amounts)))
    return Figure(value, low, high, measured.items)


def difference(after: Measure, before: Measure) -> Figure:
    """Return the value of `after` minus the value of `before`, with the 95% interval of a paired bootstrap.

    Both measures must cover the same items in the same groups (see `Measure`), because each resample draws the same
    groups for both. Raise ValueError if the numbers of groups differ.
    """
    if after.amounts.shape != before.amounts.shape:
        raise ValueError(f"measures of {after.items} and {before.items} items cannot be paired")
    low, high = map(float, np.percentile(_resampled(after) - _resampled(before), PERCENTILES))
    return Figure(figure(after).value - figure(before).value, low, high, after.items)


def outside_noise(change: Figure) -> bool:
    """Return True if the 95% interval of a difference does not contain zero."""
    return change.low > 0 or change.high < 0
