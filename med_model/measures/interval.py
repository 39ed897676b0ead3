"""The 95% interval of a figure, and the difference between two models."""

import functools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
NORMAL_QUANTILE = 1.96  # of the standard normal distribution at 97.5%


class Measure(NamedTuple):
    """A measure as sums over groups of items. Its value is sum(amounts) / sum(weights).

    The items of a group, for example the pairs of one question, are not independent, so they are summed first.
    """

    amounts: np.ndarray  # (groups,)
    weights: np.ndarray  # (groups,)
    items: int


class Figure(NamedTuple):
    """A value, its 95% interval from `low` to `high`, and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


def measure(
    amounts: Sequence[float], weights: Sequence[float] | None = None, groups: Sequence[Hashable] | None = None
) -> Measure:
    """Return the measure of items: a plain mean without `weights`, each item its own group without `groups`."""
    weights = np.ones(len(amounts)) if weights is None else np.asarray(weights, float)
    amounts = np.asarray(amounts, float)
    if groups is None:
        return Measure(amounts, weights, len(amounts))
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_numbers = [numbers[group] for group in groups]
    return Measure(np.bincount(group_numbers, amounts), np.bincount(group_numbers, weights), len(amounts))


@functools.lru_cache(maxsize=32)
def _draws(groups: int) -> np.ndarray:
    """Return how often each resample draws each group, (RESAMPLES, groups). All measures and models share it."""
    return np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES).astype(np.float32)


def _resampled(measured: Measure) -> np.ndarray:
    """Return the value of the measure in each resample, (RESAMPLES,)."""
    draws = _draws(len(measured.amounts))
    # A resample may draw only groups without weight. Its value is then 0.
    return (draws @ measured.amounts) / np.maximum(draws @ measured.weights, 1e-9)


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Return the score interval of a share (Wilson 1927). It has a width even for a share of 0 or 1."""
    z = NORMAL_QUANTILE
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def figure(measured: Measure) -> Figure:
    """Return the value of a measure and its bootstrap interval (Efron 1979), resampled by group.

    If all groups agree on a share of 0 or 1, resampling shows no spread. Then use Wilson's interval over the groups.
    """
    value = float(measured.amounts.sum() / measured.weights.sum())
    low, high = map(float, np.percentile(_resampled(measured), PERCENTILES))
    if low == high and value in (0.0, 1.0):
        low, high = map(float, _wilson(value, len(measured.amounts)))
    return Figure(value, low, high, measured.items)


def difference(after: Measure, before: Measure) -> Figure:
    """Return the value of `after` minus the value of `before`, with the interval of a paired bootstrap.

    Both models must have answered the same items: each resample draws the same groups from both. Raises ValueError if
    the numbers of groups differ.
    """
    if after.amounts.shape != before.amounts.shape:
        raise ValueError(f"measures of {after.items} and {before.items} items cannot be paired")
    low, high = map(float, np.percentile(_resampled(after) - _resampled(before), PERCENTILES))
    return Figure(figure(after).value - figure(before).value, low, high, after.items)


def outside_noise(change: Figure) -> bool:
    """Return whether the 95% interval of a difference leaves out zero."""
    return change.low > 0 or change.high < 0
