"""Means of neighbours, one by one."""

from __future__ import annotations

import pytest
import torch
from layers.literal import SIDES, places, rectangle
from torch import Tensor

from nas.layers.mixers.pooling import Pooling


def literal(x: Tensor, size: int) -> Tensor:
    """The mean of those neighbours that lie on the map, minus the position itself."""
    reach, y = size // 2, torch.zeros_like(x)
    for r, c in places(x):
        near = [x[:, i, j] for i, j in places(x) if abs(i - r) <= reach and abs(j - c) <= reach]
        y[:, r, c] = sum(near) / len(near) - x[:, r, c]
    return y


@pytest.mark.parametrize("sides", [*SIDES, (1, 1), (2, 5)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_mean_of_neighbours_on_the_map(size, sides):
    x = rectangle(4, *sides)
    torch.testing.assert_close(Pooling(size).build(4)(x), literal(x, size))


def test_a_map_of_one_value_has_no_differences():
    assert Pooling(5).build(4)(torch.full((1, 3, 7, 4), 2.5)).abs().max() == 0


@pytest.mark.parametrize("size", [3, 5])
def test_it_takes_any_map_and_has_no_weights(size):
    assert not list(Pooling(size).build(4).parameters())
    assert Pooling(size).misfit(1, 7) is None
