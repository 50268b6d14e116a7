"""Attention to a smaller map, token by token: by convolution, and by pooling to a fixed size."""

from __future__ import annotations

import math

import pytest
import torch
from layers.cutting import cut_module, randomise
from layers.literal import SIDES, answer, by_head, convolution, gelu, layer_norm, places, rectangle
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.mixers.spatial_reduction import LinearReduction, SpatialReduction

WIDTH = 8


def attention_to(x: Tensor, seen: Tensor, layer: nn.Module, heads: int) -> Tensor:
    """Of every position of x to all positions of `seen`, with the first heads of the layer."""
    q, k, v = (by_head(p(t), layer.heads) for p, t in ((layer.q, x), (layer.k, seen), (layer.v, seen)))
    y = torch.zeros_like(q)[..., :heads, :]
    for head in range(heads):
        keys, values = (t[..., head, :].flatten(1, 2) for t in (k, v))
        for place in places(x):
            y[:, *place, head] = answer(q[:, *place, head], keys, values)
    return y.flatten(3) @ layer.o.weight[:, : heads * layer.value_dim].T + layer.o.bias


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("ratio", [1, 2, 4])
@pytest.mark.parametrize("heads", [1, 2])
def test_keys_and_values_come_from_the_shrunk_map(heads, ratio, sides):
    large = randomise(SpatialReduction(2, ratio=ratio).build(WIDTH))
    small = cut_module(large, SpatialReduction(heads, ratio=ratio).build(WIDTH))
    x = seen = rectangle(WIDTH, *sides)
    if ratio > 1:
        reduce = large.get_submodule(f"reduce{ratio}")
        shrunk = convolution(x, reduce["conv"].weight, reduce["conv"].bias, stride=ratio)
        seen = layer_norm(shrunk, reduce["norm"])
    torch.testing.assert_close(small(x), attention_to(x, seen, large, heads))


def cell(i: int, pool: int, side: int) -> slice:
    """The rows that the i-th of `pool` cells covers: all that it touches."""
    return slice(math.floor(i * side / pool), math.ceil((i + 1) * side / pool))


@pytest.mark.parametrize("sides", [(8, 8), (4, 12), (7, 10), (3, 5)])
@pytest.mark.parametrize("pool", [2, 4])
def test_keys_and_values_come_from_means_of_cells(pool, sides):
    layer, x = randomise(LinearReduction(2, pool=pool).build(WIDTH)), rectangle(WIDTH, *sides)
    means = torch.zeros(2, pool, pool, WIDTH).double()
    for i in range(pool):
        for j in range(pool):
            means[:, i, j] = x[:, cell(i, pool, sides[0]), cell(j, pool, sides[1])].mean((1, 2))
    linear = means @ layer.pooled["linear"].weight.T + layer.pooled["linear"].bias
    seen = gelu(layer_norm(linear, layer.pooled["norm"]))
    torch.testing.assert_close(layer(x), attention_to(x, seen, layer, 2))


def names(ratio: int) -> set[str]:
    return {n for n, _ in SpatialReduction(2, ratio=ratio).build(WIDTH).named_parameters()}


def test_ratios_share_projections_and_nothing_else():
    plain = {f"{p}.{part}" for p in "qkvo" for part in ("weight", "bias")}
    assert names(1) == plain
    assert names(2) & names(4) == plain
    assert all(n.startswith("reduce4.") for n in names(4) - plain)


def test_pools_share_everything():
    small, large = (dict(LinearReduction(2, pool=p).build(WIDTH).named_parameters()) for p in (2, 4))
    assert {n: p.shape for n, p in small.items()} == {n: p.shape for n, p in large.items()}


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 6)])
def test_maps_that_do_not_fit_are_refused(height, width):
    with pytest.raises(SpaceError, match=rf"Attention must get .* multiples of 4: .*{height}×{width}"):
        SpatialReduction(2, ratio=4).build(WIDTH)(torch.zeros(1, height, width, WIDTH))
    assert LinearReduction(2, pool=4).misfit(height, width) is None
