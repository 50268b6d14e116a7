"""Which subnets are profiled."""

from __future__ import annotations

import numpy as np
import pytest
from devices.fakes import Digits, features

from nas.devices import choose
from nas.devices.costs import macs
from nas.errors import DeviceError


class Tiny(Digits):
    """Four architectures."""

    genes = 1


def tiny_features(genes: np.ndarray) -> np.ndarray:
    return features(np.hstack([np.zeros((len(genes), 5), dtype=int), genes]))


def test_ends_come_first_and_nothing_twice() -> None:
    space = Digits()
    chosen = choose(space, features, 48)
    assert chosen[:2] == [space.smallest(), space.largest()]
    assert len(set(chosen)) == len(chosen) == 48


def test_the_range_is_covered_where_random_samples_are_not() -> None:
    """Per quarter of the logarithm; of random samples about 5 would lie in each of the outer ones."""
    chosen = choose(Digits(), features, 60)
    log_mmacs = np.log(macs(features(np.array(chosen))))
    quarters = np.histogram(log_mmacs, bins=4)[0]
    assert quarters.min() >= 11


def test_the_seed_decides() -> None:
    first, again, other = (choose(Digits(), features, 20, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_a_small_space_gives_what_it_has() -> None:
    chosen = choose(Tiny(), tiny_features, 48)
    assert sorted(chosen) == [(0,), (1,), (2,), (3,)]


def test_equal_sizes_are_no_obstacle() -> None:
    def flat(genes: np.ndarray) -> np.ndarray:
        return features(np.zeros_like(genes))

    assert len(choose(Digits(), flat, 10)) == 10


def test_fewer_than_two_are_refused() -> None:
    with pytest.raises(DeviceError, match="n=1"):
        choose(Digits(), features, 1)
