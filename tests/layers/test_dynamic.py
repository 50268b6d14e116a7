"""The bias that a network makes of offsets, offset by offset, for groups of any sides."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import cut_module, randomise
from layers.literal import answer, by_head, layer_norm, places, rectangle, tokens
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers import Global, Window
from nas.layers.positions_in_attention.dynamic import DynamicBias

WIDTH = 8


def number(dy: int, dx: int, network: nn.ModuleDict, hidden: int, head: int) -> Tensor:
    """What the first `hidden` units of the network make of an offset for a head (CrossFormer, §3.3)."""
    units = slice(hidden)
    first, second, last = network["first"], network["second"], network["last"]
    y = dy * first.weight[units, 0] + dx * first.weight[units, 1] + first.bias[units]
    y = layer_norm(y, network["norm1"], units).clamp_min(0)
    y = second.weight[units, units] @ y + second.bias[units]
    y = layer_norm(y, network["norm2"], units).clamp_min(0)
    return last.weight[head, units] @ y + last.bias[head]


@pytest.mark.parametrize("sides", [(3, 3), (2, 5), (4, 1)])
@pytest.mark.parametrize("hidden", [6, 16])
@pytest.mark.parametrize("heads", [1, 3])
def test_the_bias_of_each_pair_is_that_of_its_offset(heads, hidden, sides):
    large = randomise(DynamicBias(16).build(3, 8, 8, None))
    small = cut_module(large, DynamicBias(hidden).build(heads, 8, 8, None))
    cells = [(r, c) for r in range(sides[0]) for c in range(sides[1])]
    bias = small.bias(*sides)
    assert bias.shape == (heads, len(cells), len(cells))
    for head in range(heads):
        for a, (r, c) in enumerate(cells):
            for b, (i, j) in enumerate(cells):
                expected = number(r - i, c - j, large.dynamic, hidden, head)
                torch.testing.assert_close(bias[head, a, b], expected)


def literal(x: Tensor, layer: nn.Module, hidden: int, group) -> Tensor:
    q, k, v = (by_head(p(x), layer.heads) for p in (layer.q, layer.k, layer.v))
    y = torch.zeros_like(v)
    for r, c in places(x):
        peers = [(i, j) for i, j in places(x) if group(i, j) == group(r, c)]
        rows, columns = zip(*peers, strict=True)
        for head in range(layer.heads):
            pairs = [number(r - i, c - j, layer.position.dynamic, hidden, head) for i, j in peers]
            seen = (t[:, rows, columns, head] for t in (k, v))
            y[:, r, c, head] = answer(q[:, r, c, head], *seen, torch.stack(pairs))
    return layer.o(y.flatten(3))


@pytest.mark.parametrize("sides", [(4, 4), (2, 4)])
@pytest.mark.parametrize(
    ("make", "group"),
    [
        (lambda p: Global(2, position=p), lambda r, c: 0),
        (lambda p: Window(2, 2, position=p), lambda r, c: (r // 2, c // 2)),
    ],
    ids=["everywhere", "windows"],
)
def test_scores_are_biased_by_where_the_key_stands(make, group, sides):
    layer = randomise(make(DynamicBias(8)).build(WIDTH))
    x = rectangle(WIDTH, *sides)
    torch.testing.assert_close(layer(x), literal(x, layer, 8, group))


def test_one_network_does_for_all_sides():
    """A group within a larger one has the biases that its offsets have there."""
    position = randomise(DynamicBias(8).build(2, 8, 8, None))
    small = position.bias(2, 3)
    large = position.bias(4, 5).unflatten(2, (4, 5)).unflatten(1, (4, 5))
    torch.testing.assert_close(small, large[:, 1:3, 2:5, 1:3, 2:5].flatten(3).flatten(1, 2))


def test_tokens_beside_the_map_are_refused():
    layer = Global(2, position=DynamicBias(8)).build(WIDTH).double()
    with pytest.raises(SpaceError, match=r"DynamicBiasNetwork must find .*got 8 queries and 8 keys on 2×3"):
        layer(rectangle(WIDTH, 2, 3), tokens(WIDTH))


def test_pooled_queries_are_refused():
    layer = Global(2, position=DynamicBias(8)).build_pooling(WIDTH, WIDTH, 2)
    with pytest.raises(SpaceError, match=r"got 2 queries and 8 keys on 2×4\. Use NoPosition"):
        layer(torch.zeros(1, 2, 4, WIDTH))
