"""Attention without scores between queries and keys (AFT, Zhai et al., 2021).

A position t averages the values of all others, weighted per channel by their keys and by a learned bias
w of the pair of positions, and gates the average with its query (eq. 2):

    y_t = σ(q_t) ⊙ Σ_t' exp(k_t' + w_tt') ⊙ v_t' / Σ_t' exp(k_t' + w_tt')

Shapes: B batch, H and W height and width of the map, N = H·W positions, C width, U inner units, h heads,
e dimension of a head's values, r rank, s side of a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers.choice import Mixer
from nas.layers.ffns.mlp import hidden_units
from nas.layers.fields import gene
from nas.layers.positions.absolute import resized
from nas.layout import Layout


@dataclass(frozen=True)
class AttentionFree(Mixer):
    """AFT of any kind in which each channel has keys of its own.

    Attributes:
        ratio: of inner units to width; 1 in the paper.
    """

    ratio: float = gene(0.5, 1, 2, default=1, kw_only=True)


@dataclass(frozen=True)
class AftSimple(AttentionFree):
    """AFT without position biases, w = 0 (AFT-simple, §3.2)."""

    def build(self, width: int) -> nn.Module:
        return SimpleAttentionFree(width, self)


@dataclass(frozen=True)
class AftFull(AttentionFree):
    """AFT with a bias for every pair of positions (AFT-full, §3.1), factorised as w_tt' = u_t · v_t' (§3.2).

    The paper has a row of u and v per position of one map size. Here they are tables over `side` × `side`
    places, interpolated (bicubic) to any other map, as absolute positions are; the same at that size.

    Attributes:
        rank: of the biases, 128 in the paper.
        side: of the tables.
    """

    rank: int = gene(4, 8)
    side: int = gene(8)

    def build(self, width: int) -> nn.Module:
        return BiasedAttentionFree(width, self, window=None)


@dataclass(frozen=True)
class AftLocal(AttentionFree):
    """As `AftFull`, whose weights it shares, but with a bias only for positions less than `window` apart in
    both directions, w = 0 for all others: they are averaged nonetheless (AFT-local, §3.2)."""

    window: int = gene(2, 4)
    rank: int = gene(4, 8)
    side: int = gene(8)

    def build(self, width: int) -> nn.Module:
        return BiasedAttentionFree(width, self, self.window)


@dataclass(frozen=True)
class AftConv(Mixer):
    """AFT with a bias per head and offset, and one key per head and position, so that all is a depthwise
    convolution and a global sum (AFT-conv, §3.2, eq. 5). The paper's normalisation of the biases over the
    kernel is left out, so that a smaller kernel is the larger one with the rest zero."""

    heads: int = gene(1, 2, 4)
    kernel: int = gene(3, 5, odd=True)
    value_dim: int = gene(8, 16, default=8, kw_only=True)

    def build(self, width: int) -> nn.Module:
        return ConvolutionAttentionFree(width, self)


class Projections(nn.Module):
    """Linear layers around AFT: q, k and v from the width, o back to it."""

    def __init__(self, width: int, units: int, keys: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, units)
        self.k = nn.Linear(width, keys)
        self.v = nn.Linear(width, units)
        self.o = nn.Linear(units, width)


class SimpleAttentionFree(nn.Module):
    def __init__(self, width: int, mixer: AftSimple) -> None:
        super().__init__()
        units = hidden_units(width, mixer.ratio)
        self.aft = Projections(width, units, units)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        k_BNU = self.aft.k(x_BHWC).flatten(1, 2)
        v_BNU = self.aft.v(x_BHWC).flatten(1, 2)
        context_BU = (k_BNU.softmax(1) * v_BNU).sum(1)
        return self.aft.o(self.aft.q(x_BHWC).sigmoid() * context_BU[:, None, None])


class BiasedAttentionFree(nn.Module):
    """Biases at `t` and `t'` are products of `aft_target[t]` and `aft_source[t']`, (side, side, r)."""

    def __init__(self, width: int, mixer: AftFull | AftLocal, window: int | None) -> None:
        super().__init__()
        units = hidden_units(width, mixer.ratio)
        self.window = window
        self.aft = Projections(width, units, units)
        self.aft_target = nn.Parameter(torch.empty(mixer.side, mixer.side, mixer.rank))
        self.aft_source = nn.Parameter(torch.empty(mixer.side, mixer.side, mixer.rank))
        nn.init.normal_(self.aft_target, std=0.1)
        nn.init.normal_(self.aft_source, std=0.1)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        _, H, W, _ = x_BHWC.shape
        bias_NN = self.bias(H, W)
        k_BNU = self.aft.k(x_BHWC).flatten(1, 2)
        v_BNU = self.aft.v(x_BHWC).flatten(1, 2)
        # What is subtracted, per row and per channel, is in numerator and denominator alike.
        near_NN = (bias_NN - bias_NN.amax(1, keepdim=True)).exp()
        keys_BNU = (k_BNU - k_BNU.amax(1, keepdim=True)).exp()
        sums = near_NN @ torch.cat([keys_BNU * v_BNU, keys_BNU], -1)
        above_BNU, below_BNU = sums.chunk(2, -1)
        y = above_BNU / below_BNU.clamp_min(torch.finfo(below_BNU.dtype).tiny)
        return self.aft.o(self.aft.q(x_BHWC).sigmoid() * y.unflatten(1, (H, W)))

    def bias(self, height: int, width: int) -> Tensor:
        """w of a map of height × width, (N, N)."""
        target, source = (resized(t, height, width).flatten(0, 1) for t in (self.aft_target, self.aft_source))
        bias_NN = target @ source.T
        if self.window is None:
            return bias_NN
        near_NN = torch.from_numpy(neighbourhood(int(height), int(width), self.window))
        return bias_NN * near_NN.to(bias_NN.device, bias_NN.dtype)


class ConvolutionAttentionFree(nn.Module):
    def __init__(self, width: int, mixer: AftConv) -> None:
        super().__init__()
        self.mixer, self.width = mixer, width
        self.heads, self.value_dim, self.kernel = mixer.heads, mixer.value_dim, mixer.kernel
        self.aft_conv = Projections(width, self.heads * self.value_dim, self.heads)
        self.aft_conv_bias = nn.Parameter(torch.zeros(self.heads, self.kernel, self.kernel))

    def layouts(self) -> dict[str, Layout]:
        inner = (self.heads, self.value_dim)
        return {
            "aft_conv.q.weight": Layout((*inner, self.width)),
            "aft_conv.q.bias": Layout(inner),
            "aft_conv.v.weight": Layout((*inner, self.width)),
            "aft_conv.v.bias": Layout(inner),
            "aft_conv.o.weight": Layout((self.width, *inner)),
            "aft_conv_bias": Layout((self.heads, self.kernel, self.kernel), centred=(1, 2)),
        }

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        keys_BHWh1 = self.aft_conv.k(x_BHWC)[..., None]
        keys_BHWh1 = (keys_BHWh1 - keys_BHWh1.amax((1, 2), keepdim=True)).exp()
        v_BHWhe = self.aft_conv.v(x_BHWC).unflatten(-1, (self.heads, self.value_dim))
        sums = self.weighted_sums(torch.cat([keys_BHWh1 * v_BHWhe, keys_BHWh1], -1))
        y_BHWhe = sums[..., :-1] / sums[..., -1:].clamp_min(self.least(keys_BHWh1))
        return self.aft_conv.o(self.aft_conv.q(x_BHWC).sigmoid() * y_BHWhe.flatten(-2))

    def weighted_sums(self, x_BHWhd: Tensor) -> Tensor:
        """Σ_t' exp(w_tt' − top) x_t' at each t, per head: exp(w) − 1 near by, and 1 everywhere."""
        _, H, W, h, d = x_BHWhd.shape
        far = (-self.top()).exp()
        kernel_h1ss = ((self.aft_conv_bias - self.top()).exp() - far)[:, None]
        x_bhHW = x_BHWhd.permute(0, 4, 3, 1, 2).reshape(-1, h, H, W)
        near = F.conv2d(x_bhHW, kernel_h1ss, padding=self.kernel // 2, groups=h)
        near_BHWhd = near.reshape(-1, d, h, H, W).permute(0, 3, 4, 2, 1)
        return near_BHWhd + far.reshape(h, 1) * x_BHWhd.sum((1, 2), keepdim=True)

    def top(self) -> Tensor:
        """Largest bias of each head, that of the positions outside the kernel, 0, included; (h, 1, 1)."""
        return self.aft_conv_bias.amax((1, 2), keepdim=True).clamp_min(0)

    def least(self, keys_BHWh1: Tensor) -> Tensor:
        """No denominator is smaller than this; rounding in near − far must not make it so."""
        lowest = self.aft_conv_bias.amin((1, 2), keepdim=True).clamp_max(0)
        floor_h1 = (lowest - self.top()).exp().reshape(-1, 1)
        least = floor_h1 * keys_BHWh1.sum((1, 2), keepdim=True)
        return least.clamp_min(torch.finfo(least.dtype).tiny)


@lru_cache(maxsize=64)
def neighbourhood(height: int, width: int, window: int) -> np.ndarray:
    """1 where two positions are less than `window` apart in both directions, else 0; (N, N)."""
    y, x = (c.ravel() for c in np.mgrid[:height, :width])
    near = (abs(y[:, None] - y) < window) & (abs(x[:, None] - x) < window)
    return near.astype(np.float32)
