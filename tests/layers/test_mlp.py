"""The plain MLP, its norms and its units, and tokens beside the map."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import cut_module, randomise
from layers.literal import gelu, layer_norm, rectangle, tokens
from torch import Tensor, nn

from nas.layers import BatchNorm, Block, LayerNorm, Mlp, NoFfn, NoMixer
from nas.layers.block import call

WIDTH = 8


def literal(x: Tensor, large: nn.Module, units: int, ffn: Mlp) -> Tensor:
    """Unit by unit, of the first ones of the large layer."""
    C = x.shape[-1]
    hidden = torch.zeros(*x.shape[:-1], units).double()
    for unit in range(units):
        hidden[..., unit] = (x * large.up.weight[unit, :C]).sum(-1)
    hidden = hidden + large.up.bias[:units] if ffn.bias else hidden
    hidden = gelu(layer_norm(hidden, large.up_norm, slice(units)) if ffn.norm else hidden)
    hidden = layer_norm(hidden, large.sub_norm, slice(units)) if ffn.sub_norm else hidden
    y = torch.zeros_like(x)
    for unit in range(units):
        y = y + hidden[..., unit, None] * large.down.weight[:C, unit]
    y = y + large.down.bias[:C] if ffn.bias else y
    return layer_norm(y, large.down_norm, slice(C)) if ffn.norm else y


OPTIONS = [{}, {"bias": False}, {"norm": LayerNorm()}, {"sub_norm": LayerNorm()}]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "no bias", "norms", "sub norm"])
@pytest.mark.parametrize(("width", "ratio"), [(8, 4), (8, 1), (6, 4), (6, 2.5)])
def test_units_nest_as_prefixes(width, ratio, options):
    large, x = randomise(Mlp(4, **options).build(WIDTH)), rectangle(width, 3, 5)
    small = cut_module(large, Mlp(ratio, **options).build(width))
    torch.testing.assert_close(small(x), literal(x, large, int(width * ratio), Mlp(ratio, **options)))


def test_batch_norm_counts_positions():
    """In training, each unit has mean 0 and variance 1 over images and positions."""
    layer = randomise(Mlp(2, norm=BatchNorm()).build(WIDTH)).train()
    x = rectangle(WIDTH, 3, 5)
    up = layer.up(x)
    centred = up - up.mean((0, 1, 2))
    up = (
        centred / (centred.square().mean((0, 1, 2)) + 1e-5).sqrt() * layer.up_norm.weight + layer.up_norm.bias
    )
    y = layer.down(gelu(up))
    centred = y - y.mean((0, 1, 2))
    y = centred / (centred.square().mean((0, 1, 2)) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), y * layer.down_norm.weight + layer.down_norm.bias)


def test_tokens_pass_through_it_as_well():
    layer, x, t = randomise(Mlp(2).build(WIDTH)), rectangle(WIDTH, 3, 5), tokens(WIDTH, 2)
    y_map, y_tokens = call(layer, (x, t))
    torch.testing.assert_close(y_map, literal(x, layer, 16, Mlp(2)))
    torch.testing.assert_close(y_tokens, literal(t, layer, 16, Mlp(2)))


def test_a_block_without_an_mlp_leaves_its_norm_out():
    block, x, t = Block(NoMixer(), NoFfn()).build(WIDTH), rectangle(WIDTH, 3, 5), tokens(WIDTH, 2)
    assert not list(block.parameters())
    assert all(torch.equal(a, b) for a, b in zip(block(x, t), (x, t), strict=True))
    assert torch.equal(NoFfn().build(WIDTH)(x), x)
