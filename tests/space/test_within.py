"""Samples of a range of costs: inside it, and spread over it."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from nas.errors import SpaceError
from nas.space import Space, Within, oneof, repeat


@dataclass(frozen=True)
class Layer:
    units: int


@dataclass(frozen=True)
class Net:
    layers: tuple[Layer, ...]


SPACE = Space(Net(repeat(Layer(oneof(1, 2, 4, 8)), 1, 6)))


def units(genes: np.ndarray) -> np.ndarray:
    """Sum of units, (n,)."""
    depth = genes[:, 0] + 1
    layers = 2 ** genes[:, 1:]
    return np.where(np.arange(6) < depth[:, None], layers, 0).sum(1)


def members(low: float, high: float) -> set[tuple[int, ...]]:
    every = [units for depth in range(1, 7) for units in product((1, 2, 4, 8), repeat=depth)]
    return {found for found in every if low <= sum(found) <= high}


def drawn(within: Within, n: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(layer.units for layer in within.sample(rng).layers) for _ in range(n)]


@pytest.mark.parametrize(("low", "high"), [(6, 20), (1, 1), (46, 48), (40.5, 41.5)])
def test_samples_lie_in_the_range(low, high):
    found = drawn(Within(SPACE, units, low, high), 30)
    assert all(low <= sum(layers) <= high for layers in found)


def test_a_fine_scale_is_kept_to():
    """Costs that differ by less than 1."""
    within = Within(SPACE, lambda genes: units(genes) / 100, 0.405, 0.415)
    assert {sum(layers) for layers in drawn(within, 30)} == {41}


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ("1", 2, "`low` must be a number: got '1'"),
        (1, None, "`high` must be a number: got None"),
        (float("nan"), 2, "`low` must be a number: got nan"),
        (3, 2, "must not end before it begins"),
    ],
)
def test_ends_that_are_none(low, high, message):
    with pytest.raises(SpaceError, match=message):
        Within(SPACE, units, low, high)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda genes: np.zeros((len(genes), 5)), r"number per row of genes: got shape \(256, 5\)"),
        (lambda genes: 1.0, r"got shape \(\)"),
        (lambda genes: np.full(len(genes), np.nan), "some of them NaN"),
    ],
)
def test_costs_that_are_none(cost, message):
    with pytest.raises(SpaceError, match=message):
        Within(SPACE, cost, 1, 2).sample(np.random.default_rng(0))


def test_a_common_range_is_drawn_as_the_space_draws():
    """Its shares are those of draws from the whole space that happen to lie in the range."""
    rng = np.random.default_rng(1)
    every = [tuple(layer.units for layer in SPACE.sample(rng).layers) for _ in range(12_000)]
    expected = Counter(len(layers) for layers in every if 8 <= sum(layers) <= 12)
    found = Counter(map(len, drawn(Within(SPACE, units, 8, 12), 3000)))
    shares = np.array([expected[n] / expected.total() - found[n] / 3000 for n in range(1, 7)])
    assert np.abs(shares).max() < 0.04


def test_a_rare_range_is_reached_everywhere():
    """Some 2 of 10,000 draws lie here; a sample is any of them, none much more often than others."""
    every = members(44, 48)
    found = Counter(drawn(Within(SPACE, units, 44, 48), 40 * len(every)))
    assert set(found) == every
    assert max(found.values()) < 4 * 40
    assert min(found.values()) > 40 / 4


def test_same_seed_same_samples_also_after_a_journey():
    within = Within(SPACE, units, 44, 48)
    assert drawn(within, 20) == drawn(pickle.loads(pickle.dumps(within)), 20)


def test_an_empty_range_is_refused_by_name():
    with pytest.raises(SpaceError, match=r"between 49 and 60: the nearest costs 48"):
        Within(SPACE, units, 49, 60).sample(np.random.default_rng(0))
    with pytest.raises(SpaceError, match=r"must not end before it begins: got 3 to 2"):
        Within(SPACE, units, 3, 2)
