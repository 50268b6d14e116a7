"""Rotary positions as turns of complex numbers: scores depend on offsets alone, at any sides."""

from __future__ import annotations

import cmath
from itertools import pairwise

import pytest
import torch
from layers.cutting import cut_module, randomise
from layers.literal import answer, by_head, places, rectangle, tokens
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers import Global, Window
from nas.layers.positions_in_attention.rotary import Rotary

WIDTH = 8
SIDES = [(3, 5), (6, 2), (1, 4)]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # angles are kept in single precision


def turned(x: list[float], row: int, column: int, base: float) -> list[float]:
    """A vector of one token: pair 2k by the row, pair 2k + 1 by the column, times base^(−k/8)."""
    y = []
    for pair in range(len(x) // 2):
        angle = (row if pair % 2 == 0 else column) * base ** (-(pair // 2) / 8)
        z = complex(x[2 * pair], x[2 * pair + 1]) * cmath.exp(1j * angle)
        y += [z.real, z.imag]
    return y


def vectors(head_dim: int, sides: tuple[int, int], seed: int) -> Tensor:
    """(B, n, h, N, d) for a map of those sides."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 1, 2, sides[0] * sides[1], head_dim, generator=generator).double()


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("base", [100.0, 10.0])
@pytest.mark.parametrize("head_dim", [2, 8, 14])
def test_queries_and_keys_turn_by_row_and_column(head_dim, base, sides):
    position = Rotary(base).build(2, head_dim, head_dim, None)
    q, k = vectors(head_dim, sides, 0), vectors(head_dim, sides, 1)
    for before, after in zip((q, k), position.turn(q, k, *sides), strict=True):
        expected = torch.empty_like(before)
        for at in torch.cartesian_prod(*(torch.arange(n) for n in before.shape[:4])).tolist():
            row, column = divmod(at[3], sides[1])
            expected[tuple(at)] = torch.tensor(turned(before[tuple(at)].tolist(), row, column, base))
        torch.testing.assert_close(after, expected, **CLOSE)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("head_dim", [4, 8])
def test_scores_depend_on_the_offset_alone(head_dim, sides):
    """One query and one key, put everywhere: what they make of each other where their offset is the same."""
    q, k = (vectors(head_dim, (1, 1), seed)[:1, :, :1] for seed in (0, 1))
    position = Rotary().build(1, head_dim, head_dim, None)
    cells = [(r, c) for r in range(sides[0]) for c in range(sides[1])]
    wide, high = (x.expand(1, 1, 1, len(cells), head_dim) for x in (q, k))
    q, k = position.turn(wide, high, *sides)
    scores = (q @ k.transpose(-1, -2))[0, 0, 0]
    by_offset: dict[tuple[int, int], float] = {}
    for a, (r, c) in enumerate(cells):
        for b, (i, j) in enumerate(cells):
            first = by_offset.setdefault((r - i, c - j), scores[a, b].item())
            assert scores[a, b].item() == pytest.approx(first, rel=1e-5, abs=1e-5)
    gaps = [b - a for a, b in pairwise(sorted(by_offset.values()))]
    assert min(gaps) > 1e-4, "another offset, another score"


def literal(x: Tensor, layer: nn.Module, group) -> Tensor:
    """Each position among those of its group, turned by where it stands in the map or window."""
    q, k, v = (by_head(p(x), layer.heads) for p in (layer.q, layer.k, layer.v))
    y = torch.zeros_like(v)
    base = layer.position.base
    for where in (q, k):
        for at in torch.cartesian_prod(*(torch.arange(n) for n in where.shape[:4])).tolist():
            row, column = group(at[1], at[2])[1]
            where[tuple(at)] = torch.tensor(turned(where[tuple(at)].tolist(), row, column, base))
    for r, c in places(x):
        peers = [(i, j) for i, j in places(x) if group(i, j)[0] == group(r, c)[0]]
        rows, columns = zip(*peers, strict=True)
        for head in range(layer.heads):
            seen = (s[:, rows, columns, head] for s in (k, v))
            y[:, r, c, head] = answer(q[:, r, c, head], *seen)
    return layer.o(y.flatten(3))


@torch.no_grad()
@pytest.mark.parametrize("sides", [(4, 2), (2, 6)])
@pytest.mark.parametrize(
    ("make", "group"),
    [
        (lambda p: Global(2, position=p), lambda r, c: (0, (r, c))),
        (lambda p: Window(2, 2, position=p), lambda r, c: ((r // 2, c // 2), (r % 2, c % 2))),
    ],
    ids=["everywhere", "windows"],
)
def test_attention_of_turned_queries_to_turned_keys(make, group, sides):
    layer = randomise(make(Rotary(10.0)).build(WIDTH))
    x = rectangle(WIDTH, *sides)
    torch.testing.assert_close(layer(x), literal(x, layer, group), **CLOSE)


@pytest.mark.parametrize("sides", [(2, 3), (4, 1)])
def test_tokens_beside_the_map_do_not_turn(sides):
    layer, x, t = (
        randomise(Global(2, position=Rotary()).build(WIDTH)),
        rectangle(WIDTH, *sides),
        tokens(WIDTH),
    )
    s = torch.cat([t, x.flatten(1, 2)], 1)
    q, k, v = (by_head(p(s), 2).detach() for p in (layer.q, layer.k, layer.v))
    for where in (q, k):
        for n, (row, column) in enumerate(places(x)):
            for b in range(2):
                for head in range(2):
                    vector = where[b, 2 + n, head]
                    vector.copy_(torch.tensor(turned(vector.tolist(), row, column, 100.0)))
    y = torch.zeros_like(v)
    for n in range(s.shape[1]):
        for head in range(2):
            y[:, n, head] = answer(q[:, n, head], k[:, :, head], v[:, :, head])
    expected = layer.o(y.flatten(2))
    on_map, beside = layer(x, t)
    torch.testing.assert_close(beside, expected[:, :2], **CLOSE)
    torch.testing.assert_close(on_map.flatten(1, 2), expected[:, 2:], **CLOSE)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("head_dim", [4, 8])
def test_a_smaller_head_keeps_the_angles_of_its_channels(head_dim, sides):
    """A published form, base^(−k / pairs), would turn the channels of a smaller head faster."""
    q, k = vectors(16, sides, 0), vectors(16, sides, 1)
    large = Rotary().build(2, 16, 16, None).turn(q, k, *sides)
    small = Rotary().build(2, head_dim, head_dim, None).turn(q[..., :head_dim], k[..., :head_dim], *sides)
    for mine, its in zip(small, large, strict=True):
        torch.testing.assert_close(mine, its[..., :head_dim])


def test_a_cut_layer_attends_with_the_channels_that_are_left():
    large = randomise(Global(3, head_dim=16, position=Rotary()).build(WIDTH))
    small = cut_module(large, Global(2, head_dim=8, position=Rotary()).build(WIDTH))
    assert torch.equal(small.q.weight.unflatten(0, (2, 8)), large.q.weight.unflatten(0, (3, 16))[:2, :8])
    assert [n for n, _ in small.named_parameters() if n.startswith("position")] == []
    x = rectangle(WIDTH, 2, 3)
    with torch.no_grad():
        torch.testing.assert_close(small(x), literal(x, small, lambda r, c: (0, (r, c))), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_vectors_and_not_the_angles(dtype):
    """At row 200 a rounded angle would be off by up to half a radian."""
    position, sides = Rotary().build(2, 8, 8, None), (256, 1)
    q, k = vectors(8, sides, 0), vectors(8, sides, 1)
    exact, rounded = position.turn(q, k, *sides), position.turn(q.to(dtype), k.to(dtype), *sides)
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == dtype
        assert float((a - b.double()).abs().max()) < 0.05


def test_turning_keeps_lengths():
    q, k = vectors(8, (3, 5), 0), vectors(8, (3, 5), 1)
    turned_q, _ = Rotary().build(2, 8, 8, None).turn(q, k, 3, 5)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1), **CLOSE)
    torch.testing.assert_close(turned_q[..., 0, :], q[..., 0, :])


# --- what does not fit --------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [1, 7])
def test_an_odd_head_is_refused(head_dim):
    with pytest.raises(SpaceError, match=f"must have an even `head_dim` for Rotary: got {head_dim}"):
        Global(2, head_dim=head_dim, position=Rotary()).build(WIDTH)


def test_pooled_queries_are_refused():
    layer = Global(2, position=Rotary()).build_pooling(WIDTH, WIDTH, 2)
    with pytest.raises(SpaceError, match=r"as many queries as keys: got 2 and 8\. Use another position"):
        layer(torch.zeros(1, 2, 4, WIDTH))
