"""Windows: who attends to whom, and biases that keep their offsets when they are cut."""

from __future__ import annotations

import math

import pytest
import torch
from layers.cutting import code, cut_module, cut_tensors, grid, maps, randomise
from torch import Tensor

from nas.errors import SpaceError
from nas.layers import Global, Window
from nas.layers.attention import RelativeBiasTable
from nas.layers.mixers.window import WindowAttention
from nas.layout import Layout

HEAD_DIM = 8


def reference(x: Tensor, large: WindowAttention, size: int, shift: bool) -> Tensor:
    """Token by token: who shares my window attends to me, biased by where it stands from me."""
    _, H, W, _ = x.shape
    offset = size // 2 if shift and size < min(H, W) else 0
    q, k, v = (p(x).unflatten(-1, (large.heads, HEAD_DIM)) for p in (large.q, large.k, large.v))
    table = large.position.relative
    centre = table.shape[-1] // 2
    y = torch.zeros_like(q)

    def window(row: int, column: int) -> tuple[int, int]:
        return (row - offset) // size, (column - offset) // size

    cells = [(r, c) for r in range(H) for c in range(W)]
    for r, c in cells:
        peers = [(i, j) for i, j in cells if window(i, j) == window(r, c)]
        rows, columns = zip(*peers, strict=True)
        scores = (q[:, r, c, None] * k[:, rows, columns]).sum(-1) / math.sqrt(HEAD_DIM)  # B, N, h
        bias = torch.stack([table[:, centre + r - i, centre + c - j] for i, j in peers])
        y[:, r, c] = ((scores + bias).softmax(1)[..., None] * v[:, rows, columns]).sum(1)
    return large.o(y.flatten(-2))


@pytest.mark.parametrize("shift", [False, True], ids=["still", "shifted"])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_cut_window_keeps_its_offsets(size, shift):
    large = randomise(Window(2, 8).build(16))
    small = cut_module(large, Window(2, size, shift).build(16).double())
    x = maps(16)
    torch.testing.assert_close(small(x), reference(x, large, size, shift))


@pytest.mark.parametrize("side", [4, 8, 12])
def test_any_side_that_the_window_divides(side):
    layer = randomise(Window(2, 4, shift=True).build(16))
    x = maps(16, side)
    torch.testing.assert_close(layer(x), reference(x, layer, 4, True))


@pytest.mark.parametrize(("height", "width"), [(8, 12), (4, 8), (12, 4)])
def test_a_map_that_is_one_window_high_or_wide_does_not_shift(height, width):
    layer = randomise(Window(2, 4, shift=True).build(16))
    x = maps(16, 12)[:, :height, :width].contiguous()
    torch.testing.assert_close(layer(x), reference(x, layer, 4, True))
    if min(height, width) == 4:
        torch.testing.assert_close(layer(x), reference(x, layer, 4, False))


def attention_codes(layer: WindowAttention) -> dict[str, Tensor]:
    inner, width, d = layer.heads * layer.head_dim, layer.width, layer.head_dim
    row, channel = grid(inner, width)
    roles = {f"{p}.weight": code(row // d, row % d, channel) for p in "qkv"}
    unit = torch.arange(inner)
    roles |= {f"{p}.bias": code(unit // d, unit % d) for p in "qkv"}
    channel, column = grid(width, inner)
    roles["o.weight"] = code(channel, column // d, column % d)
    roles["o.bias"] = code(torch.arange(width))
    if isinstance(layer, WindowAttention):
        span = layer.mixer.size
        head, dy, dx = grid(layer.heads, 2 * span - 1, 2 * span - 1)
        roles["position.relative"] = code(head, dy - (span - 1), dx - (span - 1))
    return roles


ROLES = {
    "heads": (Global(4).build(32), Global(2).build(32)),
    "width": (Global(4).build(32), Global(4).build(16)),
    "head_dim": (Global(4, head_dim=16).build(32), Global(4).build(32)),
    "window": (Window(4, 7).build(16), Window(2, 3).build(16)),
}


@pytest.mark.parametrize(("large", "small"), ROLES.values(), ids=ROLES)
def test_roles_are_kept(large, small):
    kept = cut_tensors(attention_codes(large), large, small)
    for name, wanted in attention_codes(small).items():
        assert torch.equal(kept[name], wanted), name


def test_a_prefix_of_the_bias_table_is_caught(monkeypatch):
    """What published code does: a prefix of the position table."""
    monkeypatch.setattr(
        RelativeBiasTable, "layouts", lambda self: {"relative": Layout(tuple(self.relative.shape))}
    )
    large, small = Window(2, 7).build(16), Window(2, 3).build(16)
    kept = cut_tensors(attention_codes(large), large, small)
    assert not torch.equal(kept["position.relative"], attention_codes(small)["position.relative"])
    large = randomise(Window(2, 8).build(16))
    small = cut_module(large, Window(2, 4).build(16).double())
    assert not torch.allclose(small(maps(16)), reference(maps(16), large, 4, False))


def test_a_map_that_does_not_fit_is_refused():
    with pytest.raises(SpaceError, match=r"size=3 on 8×8\. Use one of 1, 2, 4, 8"):
        Window(2, 3).build(16)(torch.zeros(1, 8, 8, 16))
