"""Stripes and values of neighbours, token by token; heads that keep their direction when others go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from layers.cutting import code, cut_module, grid, randomise
from layers.literal import SIDES, answer, assert_roles, by_head, places, rectangle
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers import Global, NoPosition, Window
from nas.layers.mixers.cross_shaped import CrossShaped
from nas.layers.positions_in_attention.lepe import Lepe
from nas.layers.positions_in_attention.offset import OffsetBias

WIDTH, HEAD_DIM = 8, 8
Together = Callable[[int, tuple[int, int], tuple[int, int]], bool]  # of a head and two places


def cross(stripe: int) -> Together:
    """The heads 0, 2 … see rows, the others columns, each `stripe` thick."""
    return lambda head, a, b: a[head % 2] // stripe == b[head % 2] // stripe


def window(size: int) -> Together:
    return lambda head, a, b: (a[0] // size, a[1] // size) == (b[0] // size, b[1] // size)


def everywhere(head: int, a: tuple[int, int], b: tuple[int, int]) -> bool:
    return True


def local(v: Tensor, position: nn.Module, head: int, place: tuple[int, int], peers: set, kernel: int):
    """The depthwise convolution of a head's values (B, H, W, e) at a place, of peers alone (CSWin, eq. 9)."""
    at = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    weight, bias = position.lepe.weight[at, 0], position.lepe.bias[at]
    centre, y = weight.shape[-1] // 2, torch.zeros_like(v[:, 0, 0]) + bias
    for dy in range(-(kernel // 2), kernel // 2 + 1):
        for dx in range(-(kernel // 2), kernel // 2 + 1):
            there = place[0] + dy, place[1] + dx
            if there in peers:
                y = y + weight[:, centre + dy, centre + dx] * v[:, *there]
    return y


def literal(x: Tensor, large: nn.Module, together: Together, heads: int, kernel: int | None) -> Tensor:
    """Of the first `heads` heads of the large layer, with the middle of its kernels."""
    q, k, v = (by_head(p(x), large.heads) for p in (large.q, large.k, large.v))
    y = torch.zeros_like(q)[..., :heads, :]
    for head in range(heads):
        for place in places(x):
            peers = [other for other in places(x) if together(head, place, other)]
            rows, columns = zip(*peers, strict=True)
            seen = (t[:, rows, columns, head] for t in (k, v))
            y[:, *place, head] = answer(q[:, *place, head], *seen)
            if kernel:
                mine = v[..., head, :]
                y[:, *place, head] += local(mine, large.position, head, place, set(peers), kernel)
    return y.flatten(3) @ large.o.weight[:, : heads * HEAD_DIM].T + large.o.bias


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("stripe", [1, 2, 4])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_cut_heads_keep_their_stripes(heads, stripe, sides):
    large = randomise(CrossShaped(3, stripe=4, position=Lepe(3)).build(WIDTH))
    small = cut_module(large, CrossShaped(heads, stripe=stripe, position=Lepe(3)).build(WIDTH))
    x = rectangle(WIDTH, *sides)
    torch.testing.assert_close(small(x), literal(x, large, cross(stripe), heads, 3))


def test_a_stripe_as_thick_as_the_map_is_all_of_it():
    layer = randomise(CrossShaped(2, stripe=4, position=NoPosition()).build(WIDTH))
    x = rectangle(WIDTH, 4, 4)
    torch.testing.assert_close(layer(x), literal(x, layer, everywhere, 2, None))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(
    ("make", "together"),
    [
        (lambda p: Window(2, 2, position=p), window(2)),
        (lambda p: Window(2, 4, position=p), window(4)),
        (lambda p: Global(2, position=p), everywhere),
        (lambda p: CrossShaped(2, stripe=2, position=p), cross(2)),
    ],
    ids=["small windows", "windows", "everywhere", "stripes"],
)
def test_values_of_neighbours_come_from_the_same_group(make, together, kernel):
    large = randomise(make(Lepe(5)).build(WIDTH))
    small = cut_module(large, make(Lepe(kernel)).build(WIDTH))
    for sides in ((8, 8), (4, 8)):
        x = rectangle(WIDTH, *sides)
        torch.testing.assert_close(small(x), literal(x, large, together, 2, kernel))


@pytest.mark.parametrize("sides", [(4, 4), (8, 4)])
def test_each_direction_has_the_biases_of_its_heads(sides):
    """With all keys alike, the softmax is of the biases alone."""
    layer = randomise(CrossShaped(3, stripe=2, position=OffsetBias(8)).build(WIDTH))
    nn.init.zeros_(layer.k.weight)
    x, v = rectangle(WIDTH, *sides), None
    v = by_head(layer.v(x), 3)
    y = torch.zeros_like(v)
    for head in range(3):
        for r, c in places(x):
            peers = [p for p in places(x) if cross(2)(head, (r, c), p)]
            bias = torch.stack([layer.position.offset[head, abs(r - i), abs(c - j)] for i, j in peers])
            rows, columns = zip(*peers, strict=True)
            y[:, r, c, head] = (bias.softmax(0)[:, None] * v[:, rows, columns, head]).sum(1)
    torch.testing.assert_close(layer(x), layer.o(y.flatten(3)))


def lepe_codes(layer: nn.Module) -> dict[str, Tensor]:
    kernel = layer.position.kernel
    channel, _, dy, dx = grid(layer.heads * layer.value_dim, 1, kernel, kernel)
    unit = torch.arange(layer.heads * layer.value_dim)
    head, e = channel // layer.value_dim, channel % layer.value_dim
    return {
        "position.lepe.weight": code(head, e, dy - kernel // 2, dx - kernel // 2),
        "position.lepe.bias": code(unit // layer.value_dim, unit % layer.value_dim),
    }


def test_kernels_keep_their_heads_and_offsets():
    large = CrossShaped(3, stripe=2, value_dim=16, position=Lepe(5)).build(WIDTH)
    small = CrossShaped(2, stripe=1, value_dim=8, position=Lepe(3)).build(WIDTH)
    assert_roles(lepe_codes, large, small)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 8), (8, 6)])
def test_stripes_that_do_not_fit_are_refused(height, width):
    stripe = 3 if height == width else 4
    with pytest.raises(SpaceError, match=rf"A cross must get .* multiples of {stripe}: .*{height}×{width}"):
        CrossShaped(2, stripe=stripe).build(WIDTH)(torch.zeros(1, height, width, WIDTH))
