"""The contract of every layer: what is cut out of a large layer is a small layer, not just its shape.

Two ways to see it. A cut layer answers as the large one does with the cut-away parts zeroed, or, where it
normalises over the cut axis or cuts around a centre, as a reference written here. And weights filled with
codes of their roles (head, channel, offset) keep the codes that the small layer expects. Supernet equals
extracted holds even for meaningless slices; only these tests tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layers import (
    Block,
    ConditionalPosition,
    GlobalAttention,
    Mlp,
    OverlapStem,
    PatchMerging,
    WindowAttention,
)
from nas.layout import Layout, cut

HEAD_DIM = 8


def layouts_of(module: nn.Module) -> dict[str, Layout]:
    declared = {}
    for prefix, inner in module.named_modules():
        for name, layout in (inner.layouts() if hasattr(inner, "layouts") else {}).items():
            declared[f"{prefix}.{name}" if prefix else name] = layout
    return {n: declared.get(n, Layout(tuple(p.shape))) for n, p in module.named_parameters()}


def cut_tensors(tensors: dict[str, Tensor], large: nn.Module, small: nn.Module) -> dict[str, Tensor]:
    have, want = layouts_of(large), layouts_of(small)
    shapes = {n: tuple(p.shape) for n, p in small.named_parameters()}
    return {n: cut(n, tensors[n].reshape(have[n].shape), have[n], want[n], shapes[n]) for n in want}


def cut_module(large: nn.Module, small: nn.Module) -> nn.Module:
    small.load_state_dict(cut_tensors(dict(large.named_parameters()), large, small))
    return small


def zero_what_is_cut_away(large: nn.Module, small: nn.Module) -> nn.Module:
    """Keeps of each parameter what the small layer uses; finds it by cutting positions."""
    positions = {n: torch.arange(p.numel()).reshape(p.shape) for n, p in large.named_parameters()}
    kept = cut_tensors(positions, large, small)
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            mask = torch.zeros(parameter.numel())
            mask[kept[name].flatten()] = 1
            parameter.mul_(mask.reshape(parameter.shape))
    return large


def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.double().eval()


def maps(width: int, side: int = 8) -> Tensor:
    return torch.randn(2, side, side, width, generator=torch.Generator().manual_seed(1)).double()


@dataclass(frozen=True)
class Case:
    make: Callable[..., nn.Module]
    large: dict[str, int]
    small: dict[str, int]  # one axis at a time


CASES = {
    "global attention": Case(
        lambda width, heads: GlobalAttention(width, heads, HEAD_DIM),
        {"width": 32, "heads": 4},
        {"width": 16, "heads": 2},
    ),
    "window attention": Case(
        lambda width, heads: WindowAttention(width, heads, HEAD_DIM, 4),
        {"width": 32, "heads": 4},
        {"width": 16, "heads": 2},
    ),
    "shifted window attention": Case(
        lambda width, heads: WindowAttention(width, heads, HEAD_DIM, 4, shift=True),
        {"width": 32, "heads": 4},
        {"width": 16, "heads": 2},
    ),
    "mlp": Case(Mlp, {"width": 32, "hidden": 96}, {"width": 16, "hidden": 32}),
    "conditional position": Case(ConditionalPosition, {"width": 32}, {"width": 16}),
}


@pytest.mark.parametrize(
    ("case", "axis"),
    [(case, axis) for case in CASES.values() for axis in case.small],
    ids=[f"{name}-{axis}" for name, case in CASES.items() for axis in case.small],
)
def test_a_cut_layer_is_the_large_one_with_the_rest_zeroed(case, axis):
    small_dims = case.large | {axis: case.small[axis]}
    large = randomise(case.make(**case.large))
    small = cut_module(large, case.make(**small_dims).double().eval())
    zeroed = zero_what_is_cut_away(large, small)
    x = maps(case.large["width"])
    width = small_dims["width"]
    x[..., width:] = 0
    torch.testing.assert_close(small(x[..., :width]), zeroed(x)[..., :width])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def test_cut_stem_normalises_over_the_channels_it_has():
    large = randomise(OverlapStem(3, 32, 2))
    small = cut_module(large, OverlapStem(3, 16, 2).double())
    x = torch.randn(2, 3, 8, 8).double()
    y = F.conv2d(x, large.conv.weight[:16], large.conv.bias[:16], stride=2, padding=1)
    y = layer_norm(y.permute(0, 2, 3, 1), large.norm.weight[:16], large.norm.bias[:16])
    torch.testing.assert_close(small(x), y)


@pytest.mark.parametrize(("width", "out"), [(16, 64), (32, 24), (16, 24)])
def test_cut_merging_joins_the_same_neighbours(width, out):
    large = randomise(PatchMerging(32, 64))
    small = cut_module(large, PatchMerging(width, out).double())
    x = maps(width)
    weight = large.reduction.weight.reshape(64, 4, 32)[:out, :, :width]
    norm_weight, norm_bias = (p.reshape(4, 32)[:, :width].flatten() for p in large.norm.parameters())
    neighbours = [x[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)]
    y = layer_norm(torch.cat(neighbours, -1), norm_weight, norm_bias)
    torch.testing.assert_close(small(x), y @ weight.flatten(1).T + large.reduction.bias[:out])


def test_cut_block_is_made_of_cut_parts():
    def make(width: int, hidden: int) -> Block:
        return Block(width, GlobalAttention(width, 2, HEAD_DIM), Mlp(width, hidden))

    large = randomise(make(32, 64))
    small = cut_module(large, make(16, 32).double())
    x = maps(16)
    norms = [large.norm1, large.norm2]
    a, b = ((n.weight[:16], n.bias[:16]) for n in norms)
    y = x + small.mixer(layer_norm(x, *a))
    torch.testing.assert_close(small(x), y + small.ffn(layer_norm(y, *b)))


def reference_window_attention(x: Tensor, large: WindowAttention, size: int, shift: bool) -> Tensor:
    """Token by token: who shares my window attends to me, biased by where it stands from me."""
    _, H, W, _ = x.shape
    offset = size // 2 if shift and size < H else 0
    q, k, v = (p(x).unflatten(-1, (large.heads, HEAD_DIM)) for p in (large.q, large.k, large.v))
    centre = large.relative_bias.shape[-1] // 2
    y = torch.zeros_like(q)

    def window(row: int, column: int) -> tuple[int, int]:
        return (row - offset) // size, (column - offset) // size

    cells = [(r, c) for r in range(H) for c in range(W)]
    for r, c in cells:
        peers = [(i, j) for i, j in cells if window(i, j) == window(r, c)]
        rows, columns = zip(*peers, strict=True)
        scores = (q[:, r, c, None] * k[:, rows, columns]).sum(-1) / math.sqrt(HEAD_DIM)  # B, N, h
        bias = torch.stack([large.relative_bias[:, centre + r - i, centre + c - j] for i, j in peers])
        y[:, r, c] = ((scores + bias).softmax(1)[..., None] * v[:, rows, columns]).sum(1)
    return large.o(y.flatten(-2))


@pytest.mark.parametrize("shift", [False, True], ids=["still", "shifted"])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_cut_window_keeps_its_offsets(size, shift):
    large = randomise(WindowAttention(16, 2, HEAD_DIM, 8))
    small = cut_module(large, WindowAttention(16, 2, HEAD_DIM, size, shift).double())
    x = maps(16)
    torch.testing.assert_close(small(x), reference_window_attention(x, large, size, shift))


# --- roles ----------------------------------------------------------------------------------------


def code(*parts: Tensor) -> Tensor:
    """One number per combination of small whole numbers, negative ones included."""
    total = torch.zeros((), dtype=torch.long)
    for part in parts:
        total = total * 1000 + part + 500
    return total


def grid(*lengths: int) -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.arange(n) for n in lengths), indexing="ij")


def attention_codes(layer: nn.Module) -> dict[str, Tensor]:
    inner, width = layer.heads * HEAD_DIM, layer.width
    row, channel = grid(inner, width)
    roles = {f"{p}.weight": code(row // HEAD_DIM, row % HEAD_DIM, channel) for p in "qkv"}
    unit = torch.arange(inner)
    roles |= {f"{p}.bias": code(unit // HEAD_DIM, unit % HEAD_DIM) for p in "qkv"}
    channel, column = grid(width, inner)
    roles["o.weight"] = code(channel, column // HEAD_DIM, column % HEAD_DIM)
    roles["o.bias"] = code(torch.arange(width))
    if isinstance(layer, WindowAttention):
        head, dy, dx = grid(layer.heads, 2 * layer.size - 1, 2 * layer.size - 1)
        roles["relative_bias"] = code(head, dy - (layer.size - 1), dx - (layer.size - 1))
    return roles


def merging_codes(layer: PatchMerging) -> dict[str, Tensor]:
    out, column = grid(layer.out_width, 4 * layer.width)
    neighbour = torch.arange(4 * layer.width)
    both = code(neighbour // layer.width, neighbour % layer.width)
    return {
        "norm.weight": both,
        "norm.bias": both,
        "reduction.weight": code(out, column // layer.width, column % layer.width),
        "reduction.bias": code(torch.arange(layer.out_width)),
    }


ROLES = {
    "heads": (GlobalAttention(32, 4, 8), GlobalAttention(32, 2, 8), attention_codes),
    "width": (GlobalAttention(32, 4, 8), GlobalAttention(16, 4, 8), attention_codes),
    "window": (WindowAttention(16, 4, 8, 7), WindowAttention(16, 2, 8, 3), attention_codes),
    "merging": (PatchMerging(32, 64), PatchMerging(24, 40), merging_codes),
}


@pytest.mark.parametrize(("large", "small", "codes"), ROLES.values(), ids=ROLES)
def test_roles_are_kept(large, small, codes):
    kept = cut_tensors(codes(large), large, small)
    for name, wanted in codes(small).items():
        assert torch.equal(kept[name], wanted), name


class PrefixBias(WindowAttention):
    """What published code does: a prefix of the position table."""

    def layouts(self) -> dict[str, Layout]:
        return super().layouts() | {"relative_bias": Layout(tuple(self.relative_bias.shape))}


def test_a_wrong_layout_is_caught():
    large, small = PrefixBias(16, 2, 8, 7), PrefixBias(16, 2, 8, 3)
    kept = cut_tensors(attention_codes(large), large, small)
    assert not torch.equal(kept["relative_bias"], attention_codes(small)["relative_bias"])
    large = randomise(PrefixBias(16, 2, HEAD_DIM, 8))
    small = cut_module(large, PrefixBias(16, 2, HEAD_DIM, 4).double())
    x = maps(16)
    assert not torch.allclose(small(x), reference_window_attention(x, large, 4, False))


# --- what else a layer promises ---------------------------------------------------------------------


@pytest.mark.parametrize("side", [4, 8, 12])
def test_any_side_that_the_window_divides(side):
    layer = randomise(WindowAttention(16, 2, HEAD_DIM, 4, shift=True))
    x = maps(16, side)
    torch.testing.assert_close(layer(x), reference_window_attention(x, layer, 4, True))


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (WindowAttention(16, 2, 8, 3), torch.zeros(1, 8, 8, 16), "size=3 on 8×8. Use one of 1, 2, 4, 8"),
        (PatchMerging(16, 16), torch.zeros(1, 5, 4, 16), "multiple of 2 .*5×4"),
        (OverlapStem(1, 8, 4), torch.zeros(1, 1, 10, 8), "multiple of 4 .*10×8"),
    ],
)
def test_maps_that_do_not_fit_are_refused(layer, x, message):
    with pytest.raises(SpaceError, match=message):
        layer(x)
