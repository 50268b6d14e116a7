"""Linear attention, pair by pair of positions, which is what its order of products saves."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import SIDES, assert_roles, by_head, layer_norm, places, rectangle
from torch import Tensor, nn

from nas.layers import LayerNorm
from nas.layers.mixers.linear import LinearAttention

WIDTH = 8
LARGE = LinearAttention(3, kernel=5, head_dim=16, value_dim=16, qk_norm=LayerNorm())


def heads_of(x: Tensor, layer: nn.Module, mixer: LinearAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, W, heads, d) with the first heads and dimensions of a large layer."""
    q, k, v = (by_head(p(x), layer.heads)[..., : mixer.heads, :] for p in (layer.q, layer.k, layer.v))
    q, k = q[..., : mixer.head_dim], k[..., : mixer.head_dim]
    if mixer.qk_norm:
        q, k = (layer_norm(t, n, slice(mixer.head_dim)) for t, n in ((q, layer.q_norm), (k, layer.k_norm)))
    return q.clamp(min=0), k.clamp(min=0), v[..., : mixer.value_dim or mixer.head_dim]


def local(v: Tensor, layer: nn.Module, head: int, kernel: int) -> Tensor:
    """The depthwise convolution of one head's values (B, H, W, e), with the middle of its kernels."""
    first, e = head * layer.value_dim, v.shape[-1]
    weight = layer.position.lepe.weight[first : first + e, 0]
    y, centre = torch.zeros_like(v) + layer.position.lepe.bias[first : first + e], weight.shape[-1] // 2
    for r, c in places(v):
        for i, j in places(v):
            if max(abs(i - r), abs(j - c)) <= kernel // 2:
                y[:, r, c] += weight[:, centre + i - r, centre + j - c] * v[:, i, j]
    return y


def literal(x: Tensor, layer: nn.Module, mixer: LinearAttention) -> Tensor:
    q, k, v = heads_of(x, layer, mixer)
    N, answers = x.shape[1] * x.shape[2], []
    for head in range(mixer.heads):
        keys, values = k[..., head, :].flatten(1, 2), v[..., head, :].flatten(1, 2)
        y = local(v[..., head, :], layer, head, mixer.kernel)
        for place in places(x):
            scores = (q[:, *place, head][:, None] * keys).sum(-1)
            share = scores / (scores.sum(1, keepdim=True) + 1e-6 * N)
            y[:, *place] += (share[..., None] * values).sum(1)
        answers.append(y)
    e = v.shape[-1]
    o = layer.o.weight.unflatten(1, (layer.heads, -1))[:, : mixer.heads, :e].flatten(1)
    return torch.cat(answers, -1) @ o.T + layer.o.bias


@pytest.mark.parametrize("sides", [*SIDES, (3, 5)])
@pytest.mark.parametrize(
    "mixer",
    [
        LinearAttention(3, kernel=5, head_dim=16),
        LinearAttention(1, kernel=3, head_dim=16),
        LinearAttention(2, kernel=5, head_dim=8, value_dim=16),
        LinearAttention(2, kernel=3, head_dim=16, value_dim=8),
        LinearAttention(2, kernel=3, head_dim=8, qk_norm=LayerNorm()),
    ],
    ids=["all", "one head", "fewer keys", "fewer values", "normed"],
)
def test_shares_are_products_of_rectified_queries_and_keys(mixer, sides):
    large, x = randomise(LARGE.build(WIDTH)), rectangle(WIDTH, *sides)
    if not mixer.qk_norm:
        large.q_norm = large.k_norm = nn.Identity()
    small = cut_module(large, mixer.build(WIDTH))
    torch.testing.assert_close(small(x), literal(x, large, mixer))


def test_a_query_that_matches_nothing_sees_its_neighbours_alone():
    layer, x = randomise(LinearAttention(2, kernel=3).build(WIDTH)), rectangle(WIDTH, 3, 5)
    layer.q.bias.data.fill_(-1e6)
    v = by_head(layer.v(x), 2)
    near = torch.cat([local(v[..., head, :], layer, head, 3) for head in range(2)], -1)
    torch.testing.assert_close(layer(x), layer.o(near))


def roles(layer: nn.Module) -> dict[str, Tensor]:
    heads, d, e, kernel = layer.heads, layer.head_dim, layer.value_dim, layer.position.kernel
    unit, _, dy, dx = grid(heads * e, 1, kernel, kernel)
    key, channel = grid(heads * d, layer.width)
    value, source = grid(heads * e, layer.width)
    out, inner = grid(layer.out_width, heads * e)
    return {
        "q.weight": code(key // d, key % d, channel),
        "k.weight": code(key // d, key % d, channel),
        "v.weight": code(value // e, value % e, source),
        "o.weight": code(out, inner // e, inner % e),
        "position.lepe.weight": code(unit // e, unit % e, dy - kernel // 2, dx - kernel // 2),
    }


def test_weights_keep_their_heads_and_offsets():
    small = LinearAttention(2, kernel=3, head_dim=8, value_dim=12)
    assert_roles(roles, LARGE.build(16), small.build(8))


@pytest.mark.parametrize("sides", [(1, 1), (7, 2)])
def test_any_map(sides):
    assert LARGE.misfit(*sides) is None
    assert LARGE.build(WIDTH)(torch.randn(1, *sides, WIDTH)).shape == (1, *sides, WIDTH)
