"""Pooled queries, keys and values, token by token, and the vectors of their offsets."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import (
    SIDES,
    answer,
    assert_roles,
    by_head,
    convolution,
    layer_norm,
    places,
    rectangle,
)
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.mixers.pooled import Pooled

WIDTH, OUT, HEAD_DIM = 8, 12, 8


def pool(x: Tensor, pooling: nn.Module, kernel: int, stride: int) -> Tensor:
    """Of one head (B, H, W, d), with the middle of the kernel."""
    weight = pooling.conv.weight
    rim = (weight.shape[-1] - kernel) // 2
    middle = weight[:, :, rim : rim + kernel, rim : rim + kernel]
    return layer_norm(convolution(x, middle, None, stride, kernel // 2, HEAD_DIM), pooling.norm)


def by_offset(q: Tensor, place: tuple[int, int], queries: Tensor, keys: Tensor, large: nn.Module) -> Tensor:
    """A query's (B, d) product with the vectors of its offsets to all keys, (B, M): steps along each axis
    are those of the map that has more positions there, and no offset is the middle of a table."""
    total = torch.zeros(len(q), keys.shape[1] * keys.shape[2]).double()
    for axis, table in enumerate((large.offsets_h, large.offsets_w)):
        n, m = queries.shape[1 + axis], keys.shape[1 + axis]
        per_query, per_key = max(1, m // n), max(1, n // m)
        for at, key in enumerate(places(keys)):
            offset = place[axis] * per_query - key[axis] * per_key
            total[:, at] += q @ table[len(table) // 2 + offset]
    return total


def literal(x: Tensor, large: nn.Module, mixer: Pooled, stride: int = 1) -> Tensor:
    """With the first heads of the large layer."""
    kernel, answers = mixer.kernel, []
    parts = (
        (large.q, large.pool_q, stride),
        *((p, way, mixer.kv_stride) for p, way in ((large.k, large.pool_k), (large.v, large.pool_v))),
    )
    for head in range(mixer.heads):
        q, k, v = (pool(by_head(p(x), large.heads)[..., head, :], way, kernel, s) for p, way, s in parts)
        y = torch.zeros_like(q)
        for place in places(q):
            mine = q[:, *place]
            bias = by_offset(mine, place, q, k, large)
            y[:, *place] = answer(mine, k.flatten(1, 2), v.flatten(1, 2), bias) + mine
        answers.append(y)
    inner = mixer.heads * HEAD_DIM
    return torch.cat(answers, -1) @ large.o.weight[:, :inner].T + large.o.bias


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(
    "mixer",
    [
        Pooled(1, 1, span=16),
        Pooled(2, 2, span=16),
        Pooled(2, 4, span=12),
        Pooled(1, 2, span=12, kernel=5),
    ],
    ids=["one head", "stride 2", "stride 4 in a smaller span", "a larger kernel"],
)
def test_queries_see_pooled_keys(mixer, sides):
    large = randomise(Pooled(2, mixer.kv_stride, span=16, kernel=5).build(WIDTH))
    small, x = cut_module(large, mixer.build(WIDTH)), rectangle(WIDTH, *sides)
    torch.testing.assert_close(small(x), literal(x, large, mixer))


@pytest.mark.parametrize("sides", [(8, 16), (16, 8)])
@pytest.mark.parametrize("kv_stride", [1, 2, 4])
def test_pooled_queries_see_as_many_keys_or_more_or_fewer(kv_stride, sides):
    mixer = Pooled(2, kv_stride, span=16)
    layer, x = randomise(mixer.build_pooling(WIDTH, OUT, 2)), rectangle(WIDTH, *sides)
    y = layer(x)
    assert y.shape == (2, sides[0] // 2, sides[1] // 2, OUT)
    torch.testing.assert_close(y, literal(x, layer, mixer, stride=2))


def roles(layer: nn.Module) -> dict[str, Tensor]:
    kernel, span = layer.mixer.kernel, layer.mixer.span
    channel, _, dy, dx = grid(HEAD_DIM, 1, kernel, kernel)
    offset, d = grid(2 * span - 1, HEAD_DIM)
    window = code(channel, dy - kernel // 2, dx - kernel // 2)
    table = code(offset - (span - 1), d)
    kernels = {f"pool_{p}.conv.weight": window for p in "qkv"}
    return kernels | {"offsets_h": table, "offsets_w": table}


@pytest.mark.parametrize("span", [16, 13, 8])
@pytest.mark.parametrize("kernel", [3, 5])
def test_tables_and_kernels_keep_their_offsets(kernel, span):
    large, small = (Pooled(2, 1, span=s, kernel=k).build(WIDTH) for s, k in ((16, 5), (span, kernel)))
    assert_roles(roles, large, small)


def test_strides_share_everything():
    coarse, fine = (dict(Pooled(2, s).build(WIDTH).named_parameters()) for s in (2, 1))
    assert {n: p.shape for n, p in coarse.items()} == {n: p.shape for n, p in fine.items()}


@pytest.mark.parametrize(
    ("mixer", "sides", "message"),
    [
        (Pooled(2, 4), (8, 6), "multiples of 4: pooled keys got 8×6"),
        (Pooled(2, 4), (6, 8), "multiples of 4: pooled keys got 6×8"),
        (Pooled(2, 1, span=8), (4, 9), r"a span of at least 9 on 4×9: got span=8\. Raise it"),
        (Pooled(2, 1, span=8), (9, 4), r"a span of at least 9 on 9×4: got span=8\. Raise it"),
    ],
)
def test_maps_that_do_not_fit_are_refused(mixer, sides, message):
    with pytest.raises(SpaceError, match=f"Pooled attention must .*{message}"):
        mixer.build(WIDTH)(torch.zeros(1, *sides, WIDTH))
    with pytest.raises(SpaceError, match=message):
        raise SpaceError(mixer.misfit(*sides))
    assert mixer.misfit(8, 8) is None


def test_a_span_counts_the_keys_of_pooled_queries():
    layer = Pooled(2, 1, span=8).build_pooling(WIDTH, OUT, 2)
    with pytest.raises(SpaceError, match=r"a span of at least 10 on 4×10: got span=8"):
        layer(torch.zeros(1, 4, 10, WIDTH))


def test_strides_whose_offsets_are_no_whole_steps_are_refused():
    with pytest.raises(SpaceError, match=r"got 2 for queries and kv_stride=3\. Use kv_stride=2"):
        Pooled(2, 3).build_pooling(WIDTH, OUT, 2)
