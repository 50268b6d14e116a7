"""Mask units, token by token; units of pooled queries."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import cut_module, randomise
from layers.literal import SIDES, answer, by_head, max_pooling, places, rectangle
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers import Window
from nas.layers.mixers.mask_unit import MaskUnit

WIDTH, OUT = 8, 12


def literal(x: Tensor, large: nn.Module, size: int, heads: int, stride: int = 1) -> Tensor:
    """A query of unit (r, c) on the pooled map sees what unit (r, c) was before it was pooled."""
    q, k, v = (p(x) for p in (large.q, large.k, large.v))
    q = max_pooling(q, stride, stride)
    q, k, v = (by_head(t, large.heads) for t in (q, k, v))
    y = torch.zeros_like(q)[..., :heads, :]
    before = size * stride
    for r, c in places(q):
        peers = [(i, j) for i, j in places(x) if (i // before, j // before) == (r // size, c // size)]
        rows, columns = zip(*peers, strict=True)
        for head in range(heads):
            seen = (t[:, rows, columns, head] for t in (k, v))
            y[:, r, c, head] = answer(q[:, r, c, head], *seen)
    return y.flatten(3) @ large.o.weight[:, : heads * large.value_dim].T + large.o.bias


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("heads", [1, 2])
def test_units_see_themselves(heads, size, sides):
    large = randomise(MaskUnit(2, size=4).build(WIDTH))
    small = cut_module(large, MaskUnit(heads, size=size).build(WIDTH))
    x = rectangle(WIDTH, *sides)
    torch.testing.assert_close(small(x), literal(x, large, size, heads))


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (1, 2), (1, 4)])
def test_pooled_queries_see_their_unit_of_before(size, stride, sides):
    layer = randomise(MaskUnit(2, size=size).build_pooling(WIDTH, OUT, stride))
    x = rectangle(WIDTH, *sides)
    y = layer(x)
    assert y.shape == (2, sides[0] // stride, sides[1] // stride, OUT)
    torch.testing.assert_close(y, literal(x, layer, size, 2, stride))


def test_weights_are_those_of_windows():
    unit, window = (dict(m.build(WIDTH).named_parameters()) for m in (MaskUnit(2, size=4), Window(2, 4)))
    assert unit.keys() == window.keys() - {"position.relative"}


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 6)])
def test_maps_that_do_not_fit_are_refused(height, width):
    with pytest.raises(SpaceError, match=rf"A mask unit must get .* multiples of 4: .*{height}×{width}"):
        MaskUnit(2, size=4).build(WIDTH)(torch.zeros(1, height, width, WIDTH))
    with pytest.raises(SpaceError, match=rf"multiples of 4: .*{height // 2}×{width // 2}"):
        MaskUnit(2, size=4).build_pooling(WIDTH, OUT, 2)(torch.zeros(1, height, width, WIDTH))
