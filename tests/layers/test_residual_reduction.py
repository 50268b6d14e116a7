"""A convolution of stride 2 beside the mean of neighbours, position by position."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import SIDES, assert_roles, convolution, layer_norm, rectangle
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers import RMSNorm
from nas.layers.downsampling.residual import ResidualReduction

WIDTH, OUT = 8, 12


def means(x: Tensor, out: int) -> Tensor:
    """Of 2 × 2 neighbours; new channels have none."""
    B, H, W, C = x.shape
    y = x.new_zeros(B, H // 2, W // 2, out)
    for r in range(H // 2):
        for c in range(W // 2):
            four = [x[:, 2 * r + dy, 2 * c + dx] for dy in (0, 1) for dx in (0, 1)]
            y[:, r, c, :C] = sum(four) / 4
    return y


def literal(x: Tensor, large: nn.Module, kernel: int, out: int) -> Tensor:
    """With the first channels of the large layer and the middle of its kernels."""
    width, margin = x.shape[-1], (large.reduce.weight.shape[-1] - kernel) // 2
    middle = slice(margin, margin + kernel)
    weight = large.reduce.weight[:out, :width, middle, middle]
    normed = layer_norm(x, large.norm, slice(width))
    y = convolution(normed, weight, large.reduce.bias[:out], stride=2, padding=kernel // 2)
    return y + means(x, out)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("width", "out"), [(WIDTH, OUT), (6, OUT), (WIDTH, WIDTH), (4, 9)])
def test_the_mean_goes_past_the_convolution(width, out, kernel, sides):
    large = randomise(ResidualReduction(5).build(WIDTH, OUT))
    small = cut_module(large, ResidualReduction(kernel).build(width, out))
    x = rectangle(width, *sides)
    y = small(x)
    assert y.shape == (2, sides[0] // 2, sides[1] // 2, out)
    torch.testing.assert_close(y, literal(x, large, kernel, out))


@pytest.mark.parametrize("sides", [(2, 6), (4, 4)])
def test_only_the_convolution_is_normed(sides):
    layer, x = randomise(ResidualReduction(3, norm=RMSNorm(1e-3)).build(WIDTH, OUT)), rectangle(WIDTH, *sides)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * layer.norm.weight
    y = convolution(normed, layer.reduce.weight, layer.reduce.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), y + means(x, OUT))


def test_without_weights_channels_stay_where_they_are():
    layer, x = ResidualReduction(3).build(WIDTH, OUT).double(), rectangle(WIDTH, 4, 6)
    for parameter in layer.reduce.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(layer(x), means(x, OUT))
    assert not layer(x)[..., WIDTH:].any()


def codes(layer: nn.Module) -> dict[str, Tensor]:
    out, channel, dy, dx = grid(*layer.reduce.weight.shape)
    middle = layer.reduce.weight.shape[-1] // 2
    every = torch.arange(layer.norm.weight.shape[0])
    return {
        "norm.weight": code(every),
        "norm.bias": code(every),
        "reduce.weight": code(out, channel, dy - middle, dx - middle),
        "reduce.bias": code(torch.arange(layer.reduce.weight.shape[0])),
    }


def test_kernels_keep_their_offsets_from_the_centre():
    assert_roles(codes, ResidualReduction(5).build(WIDTH, OUT), ResidualReduction(3).build(6, 10))


def test_channels_that_would_be_lost_are_refused():
    message = r"must not lose channels: got a width of 8 and then 6\. Choose widths that grow, or another"
    with pytest.raises(SpaceError, match=message):
        ResidualReduction(3).build(8, 6)


@pytest.mark.parametrize(("height", "width"), [(5, 8), (8, 5), (7, 7)])
def test_maps_that_do_not_fit_are_refused(height, width):
    assert f"ResidualReduction got {height}×{width}" in ResidualReduction(3).misfit(height, width)
    with pytest.raises(
        SpaceError, match=rf"Residual reduction must get .* multiples of 2: .*{height}×{width}"
    ):
        ResidualReduction(3).build(WIDTH, OUT)(torch.zeros(1, height, width, WIDTH))
    assert ResidualReduction(3).misfit(4, 6) is None
