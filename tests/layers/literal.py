"""Formulas written out slowly, against which layers are tried. Maps are (B, H, W, C), double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from layers.cutting import cut_tensors
from torch import Tensor, nn

SIDES = [(8, 8), (4, 8), (12, 4)]


def rectangle(width: int, height: int, across: int, batch: int = 2) -> Tensor:
    """A map (batch, height, across, width)."""
    generator = torch.Generator().manual_seed(height * 100 + across)
    return torch.randn(batch, height, across, width, generator=generator).double()


def tokens(width: int, count: int = 2) -> Tensor:
    return torch.randn(2, count, width, generator=torch.Generator().manual_seed(7)).double()


def layer_norm(x: Tensor, norm: nn.Module, kept: slice = slice(None)) -> Tensor:
    """Over the channels of x, with the `kept` weights of a layer norm."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centred / deviation * norm.weight[kept] + norm.bias[kept]


def batch_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """With the statistics that the norm has gathered."""
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def padded(x: Tensor, margin: int, value: float) -> Tensor:
    B, H, W, C = x.shape
    y = x.new_full((B, H + 2 * margin, W + 2 * margin, C), value)
    y[:, margin : margin + H, margin : margin + W] = x
    return y


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """Position by position, output channel by output channel: `weight` is (out, in / groups, k, k)."""
    out, inputs, k, _ = weight.shape
    x = padded(x, padding, 0.0)
    rows, columns = ((n - k) // stride + 1 for n in x.shape[1:3])
    y = x.new_zeros(len(x), rows, columns, out)
    for o in range(out):
        first = o // (out // groups) * inputs
        for r in range(rows):
            for c in range(columns):
                patch = x[:, r * stride : r * stride + k, c * stride : c * stride + k, first : first + inputs]
                y[:, r, c, o] = (patch * weight[o].permute(1, 2, 0)).sum((1, 2, 3))
        if bias is not None:
            y[..., o] += bias[o]
    return y


def max_pooling(x: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """The largest of each window, of which at least one position lies on the map."""
    x = padded(x, padding, -math.inf)
    rows, columns = ((n - kernel) // stride + 1 for n in x.shape[1:3])
    y = x.new_zeros(len(x), rows, columns, x.shape[-1])
    for r in range(rows):
        for c in range(columns):
            top, left = r * stride, c * stride
            y[:, r, c] = x[:, top : top + kernel, left : left + kernel].amax((1, 2))
    return y


def places(x: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of a map, in order."""
    return [(r, c) for r in range(x.shape[1]) for c in range(x.shape[2])]


def by_head(x: Tensor, heads: int) -> Tensor:
    """(…, heads·d) to (…, heads, d)."""
    return x.unflatten(-1, (heads, -1))


def answer(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Of one query: q (B, d) to keys (B, M, d) with values (B, M, e) and a bias (M,) or (B, M): (B, e)."""
    scores = (q[:, None] * k).sum(-1) / math.sqrt(q.shape[-1]) + bias
    weight = scores.exp() / scores.exp().sum(1, keepdim=True)
    return (weight[..., None] * v).sum(1)


def assert_roles(codes: Callable[[nn.Module], dict[str, Tensor]], large: nn.Module, small: nn.Module) -> None:
    """What is cut from the roles of the large module's weights are those of the small one's."""
    shapes = {n: torch.zeros(p.shape, dtype=torch.long) for n, p in large.named_parameters()}
    kept = cut_tensors(shapes | codes(large), large, small)
    for name, wanted in codes(small).items():
        assert torch.equal(kept[name].reshape(wanted.shape), wanted), name
