"""A bias by distance: token by token, whichever way the distance goes, and in groups of any kind."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import SIDES, answer, assert_roles, by_head, places, rectangle, tokens
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers import Global, Window
from nas.layers.mixers.short_long import LongDistance, ShortDistance
from nas.layers.positions_in_attention.offset import OffsetBias

WIDTH = 8


def literal(x: Tensor, layer: nn.Module, heads: int, group=lambda r, c: 0, step: int = 1) -> Tensor:
    """Of the first `heads` heads: who is in my group attends to me, biased by how many steps away it is."""
    q, k, v = (by_head(p(x), layer.heads) for p in (layer.q, layer.k, layer.v))
    y = torch.zeros_like(v)[..., :heads, :]
    for r, c in places(x):
        peers = [(i, j) for i, j in places(x) if group(i, j) == group(r, c)]
        rows, columns = zip(*peers, strict=True)
        for head in range(heads):
            table = layer.position.offset[head]
            bias = torch.stack([table[abs(r - i) // step, abs(c - j) // step] for i, j in peers])
            seen = (t[:, rows, columns, head] for t in (k, v))
            y[:, r, c, head] = answer(q[:, r, c, head], *seen, bias)
    return y.flatten(3) @ layer.o.weight[:, : heads * layer.value_dim].T + layer.o.bias


@pytest.mark.parametrize("sides", [(4, 4), (2, 6), (5, 3)])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_every_distance_has_a_bias_of_its_own(heads, sides):
    large = randomise(Global(3, position=OffsetBias(6)).build(WIDTH))
    small = cut_module(large, Global(heads, position=OffsetBias(6)).build(WIDTH))
    x = rectangle(WIDTH, *sides)
    torch.testing.assert_close(small(x), literal(x, large, heads))


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("mixer", [Window, ShortDistance])
def test_smaller_windows_keep_the_biases_of_their_distances(mixer, size, sides):
    large = randomise(mixer(2, 4, position=OffsetBias()).build(WIDTH))
    small = cut_module(large, mixer(2, size, position=OffsetBias()).build(WIDTH))
    assert small.position.offset.shape == (2, size, size)
    x = rectangle(WIDTH, *sides)
    torch.testing.assert_close(small(x), literal(x, large, 2, lambda r, c: (r // size, c // size)))


@pytest.mark.parametrize("sides", [(4, 8), (12, 4)])
def test_distances_among_those_that_lie_apart_are_counted_in_their_steps(sides):
    layer = randomise(LongDistance(2, interval=2, position=OffsetBias(6)).build(WIDTH))
    x = rectangle(WIDTH, *sides)
    torch.testing.assert_close(layer(x), literal(x, layer, 2, lambda r, c: (r % 2, c % 2), step=2))


@pytest.mark.parametrize(("height", "width"), [(3, 5), (5, 3), (1, 1)])
def test_a_bias_looks_the_same_from_both_sides(height, width):
    position = randomise(OffsetBias(5).build(2, 8, 8, None))
    bias = position.bias(height, width)
    assert torch.equal(bias, bias.transpose(1, 2))
    assert torch.equal(bias.flip(1, 2), bias), "and from the other end of the map"
    assert len(bias[0].unique()) == height * width


def codes(layer: nn.Module) -> dict[str, Tensor]:
    return {"position.offset": code(*grid(*layer.position.offset.shape))}


@pytest.mark.parametrize(
    ("large", "small"),
    [
        (Global(3, position=OffsetBias(7)), Global(2, position=OffsetBias(4))),
        (Window(3, 4, position=OffsetBias()), Window(1, 2, position=OffsetBias())),
    ],
    ids=["everywhere", "windows"],
)
def test_tables_keep_their_heads_and_distances(large, small):
    assert_roles(codes, large.build(WIDTH), small.build(WIDTH))


# --- maps that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(4, 7), (7, 4), (7, 7)])
def test_maps_beyond_the_span_are_refused(height, width):
    layer = Global(2, position=OffsetBias(6)).build(WIDTH)
    message = rf"groups that the span of OffsetBias holds: got {height}×{width} for span=6\. Raise"
    with pytest.raises(SpaceError, match=message):
        layer(torch.zeros(1, height, width, WIDTH))


def test_tokens_beside_the_map_are_refused():
    layer = Global(2, position=OffsetBias(6)).build(WIDTH)
    with pytest.raises(SpaceError, match=r"OffsetBiasTable must find .*got 8 queries and 8 keys on 2×3"):
        layer.double()(rectangle(WIDTH, 2, 3), tokens(WIDTH))


def test_pooled_queries_are_refused():
    layer = Global(2, position=OffsetBias(6)).build_pooling(WIDTH, WIDTH, 2)
    with pytest.raises(SpaceError, match=r"got 2 queries and 8 keys on 2×4\. Use NoPosition"):
        layer(torch.zeros(1, 2, 4, WIDTH))
