"""Attention between channels, pair by pair of them."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import SIDES, assert_roles, by_head, rectangle
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.mixers.channel import Channel

WIDTH = 8


def literal(x: Tensor, large: nn.Module, heads: int, d: int) -> Tensor:
    """Of the first heads of the large layer, and the first `d` channels of each. A channel is the vector of
    what it holds at all positions, of length 1; what it sees of another is the product of both."""
    q, k, v = (by_head(p(x), large.heads).flatten(1, 2) for p in (large.q, large.k, large.v))  # B N heads d
    q, k = (t / t.square().sum(1, keepdim=True).sqrt() for t in (q, k))
    y = torch.zeros(len(x), q.shape[1], heads, d).double()
    for head in range(heads):
        for a in range(d):
            alike = torch.stack([(q[:, :, head, a] * k[:, :, head, b]).sum(1) for b in range(d)], 1)
            weight = (alike * large.channel_temperature[head]).exp()
            weight = weight / weight.sum(1, keepdim=True)
            for b in range(d):
                y[:, :, head, a] += weight[:, b, None] * v[:, :, head, b]
    o = by_head(large.o.weight, large.heads)[:, :heads, :d].flatten(1)
    return (y.flatten(2) @ o.T + large.o.bias).reshape(x.shape)


@pytest.mark.parametrize("sides", [*SIDES, (3, 5)])
@pytest.mark.parametrize("head_dim", [4, 8, 16])
@pytest.mark.parametrize("heads", [1, 3])
def test_cut_channels_see_those_of_their_head_that_are_left(heads, head_dim, sides):
    large, x = randomise(Channel(3, head_dim=16).build(WIDTH)), rectangle(WIDTH, *sides)
    large.channel_temperature.data += torch.arange(3)  # so that no head sees all alike
    small = cut_module(large, Channel(heads, head_dim=head_dim).build(WIDTH))
    torch.testing.assert_close(small(x), literal(x, large, heads, head_dim))


def test_positions_may_come_in_any_order():
    layer, x = randomise(Channel(2).build(WIDTH)), rectangle(WIDTH, 4, 6)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    shuffled = x.flatten(1, 2)[:, order].reshape(x.shape)
    torch.testing.assert_close(layer(shuffled), layer(x).flatten(1, 2)[:, order].reshape(x.shape))


def roles(layer: nn.Module) -> dict[str, Tensor]:
    d = layer.head_dim
    unit, channel = grid(layer.heads * d, layer.width)
    out, inner = grid(layer.out_width, layer.heads * d)
    rows, bias = code(unit // d, unit % d, channel), torch.arange(layer.heads * d)
    return {
        **{f"{p}.weight": rows for p in "qkv"},
        **{f"{p}.bias": code(bias // d, bias % d) for p in "qkv"},
        "o.weight": code(out, inner // d, inner % d),
        "channel_temperature": code(torch.arange(layer.heads)),
    }


@pytest.mark.parametrize(("heads", "head_dim"), [(2, 16), (3, 8), (1, 4)])
def test_weights_keep_their_heads_and_channels(heads, head_dim):
    large, small = (Channel(h, head_dim=d).build(w) for h, d, w in ((3, 16, 16), (heads, head_dim, 8)))
    assert_roles(roles, large, small)


def test_values_of_another_dimension_are_refused():
    with pytest.raises(SpaceError, match=r"`value_dim` of Channel must be None: got 16"):
        Channel(2, head_dim=8, value_dim=16)


@pytest.mark.parametrize("sides", [(1, 1), (7, 2)])
def test_any_map(sides):
    assert Channel(2).misfit(*sides) is None
    assert Channel(2).build(WIDTH)(torch.randn(1, *sides, WIDTH)).shape == (1, *sides, WIDTH)
