"""Projections that look at their neighbours, token by token, and tokens beside the map."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import (
    answer,
    assert_roles,
    batch_norm,
    by_head,
    convolution,
    layer_norm,
    rectangle,
    tokens,
)
from torch import Tensor, nn

from nas.layers import LayerNorm
from nas.layers.mixers.convolutional_projection import ConvProjection

WIDTH = 8
SIDES = [(4, 6), (7, 3)]


def with_statistics(layer: nn.Module) -> nn.Module:
    """With batch norms that have seen something."""
    generator = torch.Generator().manual_seed(3)
    for name, buffer in layer.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + name.endswith("var"))
    return layer


def cut_with_statistics(large: nn.Module, small: nn.Module) -> nn.Module:
    small.load_state_dict(dict(large.named_buffers()), strict=False)
    return cut_module(large, small)


def before(x: Tensor, projection: nn.Module, kernel: int, stride: int) -> Tensor:
    """The map (B, H, W, C) as a projection sees it, with the middle of the kernel: (B, M, C)."""
    weight = projection.conv.weight
    rim = (weight.shape[-1] - kernel) // 2
    middle = weight[:, :, rim : rim + kernel, rim : rim + kernel]
    y = convolution(x, middle, None, stride, kernel // 2, groups=x.shape[-1])
    norm = layer_norm if isinstance(projection.norm, nn.LayerNorm) else batch_norm
    return norm(y, projection.norm).flatten(1, 2)


def literal(x: Tensor, t: Tensor, large: nn.Module, mixer: ConvProjection) -> Tensor:
    """Of all tokens (B, T, C), and then all positions in order, to tokens and positions: (B, T + H·W, C)."""
    strides = {"q": 1, "k": mixer.kv_stride, "v": mixer.kv_stride}
    seen = {p: before(x, large.before[p], mixer.kernel, s) for p, s in strides.items()}
    q, k, v = (by_head(getattr(large, p)(torch.cat([t, seen[p]], 1)), large.heads) for p in "qkv")
    y = torch.zeros_like(q)[:, :, : mixer.heads]
    for head in range(mixer.heads):
        for i in range(q.shape[1]):
            y[:, i, head] = answer(q[:, i, head], k[:, :, head], v[:, :, head])
    inner = mixer.heads * large.value_dim
    return y.flatten(2) @ large.o.weight[:, :inner].T + large.o.bias


CASES = [
    ConvProjection(1, 1),
    ConvProjection(2, 2),
    ConvProjection(2, 1, kernel=5),
    ConvProjection(2, 2, norm=LayerNorm()),
]


def cut_case(mixer: ConvProjection) -> tuple[nn.Module, nn.Module]:
    large = ConvProjection(2, 1, kernel=5, norm=mixer.norm).build(WIDTH)
    large = with_statistics(randomise(large))
    return large, cut_with_statistics(large, mixer.build(WIDTH).double())


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("mixer", CASES, ids=["one head", "stride 2", "a larger kernel", "layer norm"])
def test_queries_keys_and_values_look_at_neighbours(mixer, sides):
    large, small = cut_case(mixer)
    x = rectangle(WIDTH, *sides)
    expected = literal(x, tokens(WIDTH, 0), large, mixer)
    torch.testing.assert_close(small(x), expected.unflatten(1, sides))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("mixer", CASES[:2], ids=["one head", "stride 2"])
def test_tokens_go_to_the_projections_as_they_are(mixer, count):
    large, small = cut_case(mixer)
    x, t = rectangle(WIDTH, 4, 6), tokens(WIDTH, count)
    expected = literal(x, t, large, mixer)
    y_map, y_tokens = small(x, t)
    torch.testing.assert_close(y_tokens, expected[:, :count])
    torch.testing.assert_close(y_map, expected[:, count:].unflatten(1, (4, 6)))


def roles(layer: nn.Module) -> dict[str, Tensor]:
    kernel = layer.before["q"].conv.weight.shape[-1]
    channel, _, dy, dx = grid(layer.width, 1, kernel, kernel)
    return {f"before.{p}.conv.weight": code(channel, dy - kernel // 2, dx - kernel // 2) for p in "qkv"}


def test_kernels_keep_their_offsets():
    large, small = ConvProjection(2, 1, kernel=5).build(16), ConvProjection(2, 2, kernel=3).build(8)
    assert_roles(roles, large, small)


def test_strides_share_everything():
    fine, coarse = (dict(ConvProjection(2, s).build(WIDTH).named_parameters()) for s in (1, 2))
    assert {n: p.shape for n, p in fine.items()} == {n: p.shape for n, p in coarse.items()}


@pytest.mark.parametrize("sides", [(1, 1), (5, 2)])
def test_any_map(sides):
    mixer = ConvProjection(2, 2, kernel=5)
    assert mixer.misfit(*sides) is None
    assert mixer.build(WIDTH).eval()(torch.randn(1, *sides, WIDTH)).shape == (1, *sides, WIDTH)
