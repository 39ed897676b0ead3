"""How sure a figure is: its 95% interval, and whether two models differ by more than chance."""

import functools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
NORMAL_QUANTILE = 1.96  # of the standard normal distribution at 97.5%


class Measure(NamedTuple):
    """A measure item by item: its value is sum(amounts) / sum(weights), each (groups,).

    Items that share a group (the pairs of one question) are no independent evidence, so that they are summed first.
    """

    amounts: np.ndarray
    weights: np.ndarray
    items: int


class Figure(NamedTuple):
    """A value with its 95% interval and the number of items it is taken on."""

    value: float
    low: float
    high: float
    n: int


def measure(
    amounts: Sequence[float], weights: Sequence[float] | None = None, groups: Sequence[Hashable] | None = None
) -> Measure:
    """The measure of items; without weights a plain mean, without groups each item is a group of its own."""
    weights = np.ones(len(amounts)) if weights is None else np.asarray(weights, float)
    amounts = np.asarray(amounts, float)
    if groups is None:
        return Measure(amounts, weights, len(amounts))
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    of_item = [places[group] for group in groups]
    return Measure(np.bincount(of_item, amounts), np.bincount(of_item, weights), len(amounts))


@functools.lru_cache(maxsize=32)
def _draws(groups: int) -> np.ndarray:
    """How often each group is drawn in each resample, (RESAMPLES, groups); the same for every measure and model."""
    return np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES).astype(np.float32)


def _resampled(of: Measure) -> np.ndarray:
    draws = _draws(len(of.amounts))
    # A resample may draw only groups without weight; it then says nothing.
    return (draws @ of.amounts) / np.maximum(draws @ of.weights, 1e-9)


def _wilson(share: float, n: int) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927), which has a width also where the share is 0 or 1."""
    z = NORMAL_QUANTILE
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def figure(of: Measure) -> Figure:
    """The value of a measure and its bootstrap interval (Efron 1979), drawn by group.

    Where every group agrees, at a share of 0 or 1, resampling shows no spread: then Wilson's interval of the groups.
    """
    value = float(of.amounts.sum() / of.weights.sum())
    low, high = map(float, np.percentile(_resampled(of), PERCENTILES))
    if low == high and value in (0.0, 1.0):
        low, high = map(float, _wilson(value, len(of.amounts)))
    return Figure(value, low, high, of.items)


def difference(after: Measure, before: Measure) -> Figure:
    """By how much a measure rose between two models on the same items: a paired bootstrap, both drawn alike."""
    if after.amounts.shape != before.amounts.shape:
        raise ValueError(f"measures of {after.items} and {before.items} items cannot be paired")
    low, high = map(float, np.percentile(_resampled(after) - _resampled(before), PERCENTILES))
    return Figure(figure(after).value - figure(before).value, low, high, after.items)


def outside_noise(change: Figure) -> bool:
    """Whether the 95% interval of a difference leaves out zero."""
    return change.low > 0 or change.high < 0
