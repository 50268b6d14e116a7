"""Block aggregation, position by position."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import (
    SIDES,
    assert_roles,
    batch_norm,
    convolution,
    layer_norm,
    max_pooling,
    rectangle,
)
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers import BatchNorm
from nas.layers.downsampling.aggregation import BlockAggregation

WIDTH, OUT = 6, 10


def literal(x: Tensor, large: nn.Module, kernel: int, out: int) -> Tensor:
    """The largest of the 3 × 3 positions around every second one, of what the convolution and norm make."""
    C, rim = x.shape[-1], (large.aggregate.weight.shape[-1] - kernel) // 2
    weight = large.aggregate.weight[:out, :C, rim : rim + kernel, rim : rim + kernel]
    y = convolution(x, weight, large.aggregate.bias[:out], padding=kernel // 2)
    if isinstance(large.aggregate_norm, nn.LayerNorm):
        y = layer_norm(y, large.aggregate_norm, slice(out))
    else:
        y = batch_norm(y, large.aggregate_norm)
    return max_pooling(y, 3, 2, 1)[:, : x.shape[1] // 2, : x.shape[2] // 2]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(
    ("kernel", "width", "out"), [(5, WIDTH, OUT), (3, WIDTH, OUT), (3, 4, OUT), (5, WIDTH, 8), (3, 4, 8)]
)
def test_a_cut_aggregation_is_the_middle_of_the_large_one(kernel, width, out, sides):
    large = randomise(BlockAggregation(5).build(WIDTH, OUT))
    small, x = cut_module(large, BlockAggregation(kernel).build(width, out)), rectangle(width, *sides)
    y = small(x)
    assert y.shape == (2, sides[0] // 2, sides[1] // 2, out)
    torch.testing.assert_close(y, literal(x, large, kernel, out))


def test_another_norm_may_stand_before_the_pooling():
    layer = randomise(BlockAggregation(3, norm=BatchNorm()).build(WIDTH, OUT))
    layer.aggregate_norm.running_mean.fill_(0.3)
    layer.aggregate_norm.running_var.fill_(1.7)
    x = rectangle(WIDTH, 4, 6)
    torch.testing.assert_close(layer(x), literal(x, layer, 3, OUT))


def roles(layer: nn.Module) -> dict[str, Tensor]:
    kernel = layer.down.kernel
    out, channel, dy, dx = grid(*layer.aggregate.weight.shape)
    return {"aggregate.weight": code(out, channel, dy - kernel // 2, dx - kernel // 2)}


def test_kernels_keep_their_offsets():
    assert_roles(roles, BlockAggregation(5).build(WIDTH, OUT), BlockAggregation(3).build(4, 8))


@pytest.mark.parametrize(("height", "width"), [(5, 4), (4, 5)])
def test_odd_maps_are_refused(height, width):
    message = f"multiples of 2: BlockAggregation got {height}×{width}"
    assert message in BlockAggregation(3).misfit(height, width)
    with pytest.raises(SpaceError, match=f"Block aggregation must get .*{message}"):
        BlockAggregation(3).build(WIDTH, OUT)(torch.zeros(1, height, width, WIDTH))
    assert BlockAggregation(3).misfit(4, 6) is None
