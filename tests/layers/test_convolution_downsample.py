"""Strided convolution between stages, position by position."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, cut_tensors, grid, randomise
from layers.literal import SIDES, assert_roles, convolution, layer_norm, rectangle
from torch import Tensor, nn

from nas.errors import LayoutError, SpaceError
from nas.layers.downsampling.convolution import ConvDownsample

WIDTH, OUT = 6, 10


def literal(x: Tensor, large: nn.Module, down: ConvDownsample, out: int) -> Tensor:
    """With the middle of the large layer's kernels, of the channels that are there."""
    C, first = x.shape[-1], down.norm_first
    rim = (large.conv.weight.shape[-1] - down.kernel) // 2
    weight = large.conv.weight[:out, :C, rim : rim + down.kernel, rim : rim + down.kernel]
    bias = None if large.conv.bias is None else large.conv.bias[:out]
    if down.norm and first:
        x = layer_norm(x, large.norm, slice(C))
    y = convolution(x, weight, bias, stride=2, padding={2: 0, 3: 1, 4: 1, 5: 2}[down.kernel])
    return layer_norm(y, large.norm, slice(out)) if down.norm and not first else y


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(
    ("largest", "kernel", "options"),
    [
        (5, 5, {}),
        (5, 3, {}),
        (5, 3, {"norm_first": True}),
        (4, 2, {"norm_first": True}),
        (4, 4, {"bias": False}),
        (3, 3, {"norm": None}),
    ],
)
@pytest.mark.parametrize(("width", "out"), [(WIDTH, OUT), (4, 8)])
def test_a_cut_convolution_is_the_middle_of_the_large_one(largest, kernel, options, width, out, sides):
    large = randomise(ConvDownsample(largest, **options).build(WIDTH, OUT))
    down = ConvDownsample(kernel, **options)
    small, x = cut_module(large, down.build(width, out)), rectangle(width, *sides)
    y = small(x)
    assert y.shape == (2, sides[0] // 2, sides[1] // 2, out)
    torch.testing.assert_close(y, literal(x, large, down, out))


def roles(layer: nn.Module) -> dict[str, Tensor]:
    kernel = layer.down.kernel
    out, channel, dy, dx = grid(*layer.conv.weight.shape)
    return {"conv.weight": code(out, channel, dy - kernel // 2, dx - kernel // 2)}


@pytest.mark.parametrize(("largest", "kernel"), [(5, 3), (7, 3), (4, 2)])
def test_kernels_keep_their_offsets(largest, kernel):
    large, small = ConvDownsample(largest).build(WIDTH, OUT), ConvDownsample(kernel).build(4, 8)
    assert_roles(roles, large, small)


def test_an_even_kernel_is_no_middle_of_an_odd_one():
    large, small = ConvDownsample(3).build(WIDTH, OUT), ConvDownsample(2).build(WIDTH, OUT)
    with pytest.raises(LayoutError, match=r"`conv.weight` must be cut around its centre.* 2 from 3"):
        cut_tensors(dict(large.named_parameters()), large, small)


@pytest.mark.parametrize(("height", "width"), [(5, 4), (4, 5)])
def test_odd_maps_are_refused(height, width):
    message = f"multiples of 2: ConvDownsample got {height}×{width}"
    assert message in ConvDownsample(3).misfit(height, width)
    with pytest.raises(SpaceError, match=f"A strided convolution must get .*{message}"):
        ConvDownsample(3).build(WIDTH, OUT)(torch.zeros(1, height, width, WIDTH))
    assert ConvDownsample(3).misfit(4, 6) is None
