"""Pooling by a depthwise convolution: which channel makes which, position by position, and tokens."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import assert_roles, padded, rectangle, tokens
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.downsampling.depthwise_pooling import DepthwisePooling

SIDES = [(8, 4), (5, 7), (3, 6)]


def literal(x: Tensor, large: nn.Module, kernel: int, out: int) -> Tensor:
    """Channel o is made of channel o // (out / width), with the middle of the o-th of the large kernels."""
    rim, each = (large.pool.weight.shape[-1] - kernel) // 2, out // x.shape[-1]
    wide = padded(x, kernel // 2, 0.0)
    y = torch.zeros(len(x), (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2, out).double()
    for o in range(out):
        for r in range(y.shape[1]):
            for c in range(y.shape[2]):
                for dy in range(kernel):
                    for dx in range(kernel):
                        weight = large.pool.weight[o, 0, rim + dy, rim + dx]
                        y[:, r, c, o] += weight * wide[:, 2 * r + dy, 2 * c + dx, o // each]
    return y + large.pool.bias[:out]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("width", "out"), [(4, 8), (2, 8), (4, 4), (2, 4), (1, 3)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_weights_follow_the_channel_that_they_make(kernel, width, out, sides):
    large = randomise(DepthwisePooling(5).build(4, 8))
    small, x = cut_module(large, DepthwisePooling(kernel).build(width, out)), rectangle(width, *sides)
    torch.testing.assert_close(small(x), literal(x, large, kernel, out))


@pytest.mark.parametrize("side", [1, 2, 5, 8])
@pytest.mark.parametrize("kernel", [3, 5])
def test_odd_sides_round_up(kernel, side):
    down = DepthwisePooling(kernel)
    y = down.build(2, 4)(torch.zeros(1, side, side + 1, 2))
    assert y.shape[1:3] == (down.after(side), down.after(side + 1)) == ((side + 1) // 2, side // 2 + 1)
    assert down.misfit(side, side + 1) is None


@pytest.mark.parametrize(("width", "out"), [(4, 8), (2, 8), (2, 4)])
def test_tokens_have_a_linear_layer(width, out):
    large = randomise(DepthwisePooling(3, tokens=True).build(4, 8))
    small = cut_module(large, DepthwisePooling(3, tokens=True).build(width, out))
    x, t = rectangle(width, 5, 4), tokens(width, 3)
    y_map, y_tokens = small(x, t)
    torch.testing.assert_close(y_map, literal(x, large, 3, out))
    expected = torch.zeros(2, 3, out).double() + large.pool_token.bias[:out]
    for o in range(out):
        for i in range(width):
            expected[..., o] += large.pool_token.weight[o, i] * t[..., i]
    torch.testing.assert_close(y_tokens, expected)
    torch.testing.assert_close(small(x), y_map)


def test_tokens_without_a_layer_are_refused():
    layer = DepthwisePooling(3).build(4, 8).double()
    with pytest.raises(SpaceError, match=r"got tokens=False and 2 of them\. Use tokens=True"):
        layer(rectangle(4, 4, 4), tokens(4))


def roles(layer: nn.Module) -> dict[str, Tensor]:
    out, _, dy, dx = grid(*layer.pool.weight.shape)
    kernel = layer.pool.weight.shape[-1]
    return {
        "pool.weight": code(out, dy - kernel // 2, dx - kernel // 2),
        "pool.bias": code(torch.arange(layer.pool.out_channels)),
        "pool_token.weight": code(*grid(*layer.pool_token.weight.shape)),
    }


def test_kernels_keep_their_channel_and_offsets():
    large, small = (DepthwisePooling(k, tokens=True).build(w, 8) for k, w in ((5, 4), (3, 2)))
    assert_roles(roles, large, small)


def test_a_width_that_is_no_multiple_is_refused():
    with pytest.raises(SpaceError, match="multiply the width by a whole number: got 4 to 6"):
        DepthwisePooling(3).build(4, 6)
