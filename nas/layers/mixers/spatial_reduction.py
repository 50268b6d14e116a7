"""Attention to a smaller map."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layers.attention import Attention, AttentionMixer, NoPosition
from nas.layers.choice import Norm, not_multiple
from nas.layers.fields import gene
from nas.layers.norms import LayerNorm


@dataclass(frozen=True)
class SpatialReduction(AttentionMixer):
    """Keys and values come from a map that a convolution of `ratio` × `ratio` side by side has shrunk
    (PVT, Wang et al., 2021, §3.3; SegFormer). Weights of different ratios are not shared."""

    ratio: int = gene(1, 2, 4)
    norm: Norm = field(default=LayerNorm(), kw_only=True)

    def build(self, width: int) -> nn.Module:
        return SpatialReductionAttention(width, self)

    def misfit(self, height: int, width: int) -> str | None:
        return not_multiple("spatial reduction", self.ratio, height, width)


@dataclass(frozen=True)
class LinearReduction(AttentionMixer):
    """Keys and values come from the map pooled to `pool` × `pool`, whatever its size, so that the cost is
    linear in it (PVT v2, Wang et al., 2022, §3.1)."""

    pool: int = gene(2, 4)
    norm: Norm = field(default=LayerNorm(), kw_only=True)

    def build(self, width: int) -> nn.Module:
        return LinearReductionAttention(width, self)


class ReducedAttention(Attention):
    """Queries of every position, keys and values of what `reduce` leaves."""

    def __init__(self, width: int, mixer: SpatialReduction | LinearReduction) -> None:
        super().__init__(width, mixer, NoPosition())
        self.mixer = mixer

    @abstractmethod
    def reduced(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, h, w, C)."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        _, H, W, C = x_BHWC.shape
        q_B1NC = self.q(x_BHWC).flatten(1, 2)[:, None]
        reduced_B1MC = self.reduced(x_BHWC).flatten(1, 2)[:, None]
        y = self.attend(q_B1NC, self.k(reduced_B1MC), self.v(reduced_B1MC), H, W)
        return self.out(y).reshape(-1, H, W, C)


class SpatialReductionAttention(ReducedAttention):
    def __init__(self, width: int, mixer: SpatialReduction) -> None:
        super().__init__(width, mixer)
        self.ratio = mixer.ratio
        if self.ratio > 1:
            reduce = nn.ModuleDict(
                {"conv": nn.Conv2d(width, width, self.ratio, self.ratio), "norm": mixer.norm.build(width)}
            )
            self.add_module(f"reduce{self.ratio}", reduce)

    def reduced(self, x_BHWC: Tensor) -> Tensor:
        if problem := self.mixer.misfit(*x_BHWC.shape[1:3]):
            raise SpaceError(f"Attention {problem}")
        if self.ratio == 1:
            return x_BHWC
        reduce = self.get_submodule(f"reduce{self.ratio}")
        return reduce["norm"](reduce["conv"](x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class LinearReductionAttention(ReducedAttention):
    def __init__(self, width: int, mixer: LinearReduction) -> None:
        super().__init__(width, mixer)
        self.pool = mixer.pool
        self.pooled = nn.ModuleDict({"linear": nn.Linear(width, width), "norm": mixer.norm.build(width)})

    def reduced(self, x_BHWC: Tensor) -> Tensor:
        x_BCpp = pooled_to(x_BHWC.permute(0, 3, 1, 2), self.pool)
        return F.gelu(self.pooled["norm"](self.pooled["linear"](x_BCpp.permute(0, 2, 3, 1))))


def pooled_to(x_BCHW: Tensor, side: int) -> Tensor:
    """Means over `side` × `side` parts of a map, (B, C, side, side); they overlap where they don't divide it.

    As products with constant matrices for exporters, some of which want parts that divide the map.
    """
    if not torch.jit.is_tracing():
        return F.adaptive_avg_pool2d(x_BCHW, side)
    rows, columns = (_shares(int(n), side).to(x_BCHW) for n in x_BCHW.shape[2:])
    return rows @ x_BCHW @ columns.T


def _shares(n: int, parts: int) -> Tensor:
    """How much each of `n` places counts in each part, (parts, n)."""
    shares = torch.zeros(parts, n)
    for i in range(parts):
        start, end = i * n // parts, -(-(i + 1) * n // parts)
        shares[i, start:end] = 1 / (end - start)
    return shares
