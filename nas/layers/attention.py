"""Attention over a feature map: every position sees all others, or those of its window.

Shapes: B batch, H and W height and width of the map, C width of the residual stream, N tokens that see
one another, n windows, h heads, d dimension of a head, s side of a window.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layout import Layout


class Attention(nn.Module):
    """Projections that all kinds of attention share by name; `heads` is independent of `width`."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.width, self.heads, self.head_dim = width, heads, head_dim
        self.q = nn.Linear(width, heads * head_dim)
        self.k = nn.Linear(width, heads * head_dim)
        self.v = nn.Linear(width, heads * head_dim)
        self.o = nn.Linear(heads * head_dim, width)

    @abstractmethod
    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""

    def layouts(self) -> dict[str, Layout]:
        rows = {f"{p}.weight": Layout((self.heads, self.head_dim, self.width)) for p in "qkv"}
        biases = {f"{p}.bias": Layout((self.heads, self.head_dim)) for p in "qkv"}
        return rows | biases | {"o.weight": Layout((self.width, self.heads, self.head_dim))}


class GlobalAttention(Attention):
    """Every position attends to all (Vaswani et al., 2017; without a position bias)."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        _, H, W, C = x_BHWC.shape
        x_BNC = x_BHWC.reshape(-1, H * W, C)
        q, k, v = (
            p(x_BNC).reshape(-1, H * W, self.heads, self.head_dim).transpose(1, 2)  # B h N d
            for p in (self.q, self.k, self.v)
        )
        y_BhNd = F.scaled_dot_product_attention(q, k, v)
        y_BNC = self.o(y_BhNd.transpose(1, 2).reshape(-1, H * W, self.heads * self.head_dim))
        return y_BNC.reshape(-1, H, W, C)


class WindowAttention(Attention):
    """Attention inside windows of `size` × `size`, with relative position bias (Swin, Liu et al., 2021).

    `shift` moves the windows by half their side, so that neighbours of the layer before meet; where one
    window covers the map there is nothing to shift.

    Raises:
        SpaceError: the map is no multiple of the window.
    """

    def __init__(self, width: int, heads: int, head_dim: int, size: int, shift: bool = False) -> None:
        super().__init__(width, heads, head_dim)
        self.size, self.shift = size, shift
        self.relative_bias = nn.Parameter(torch.zeros(heads, 2 * size - 1, 2 * size - 1))

    def layouts(self) -> dict[str, Layout]:
        bias = Layout((self.heads, 2 * self.size - 1, 2 * self.size - 1), centred=(1, 2))
        return super().layouts() | {"relative_bias": bias}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        _, H, W, _ = x_BHWC.shape
        s = self.size
        if H % s or W % s:
            raise SpaceError(
                f"A window must divide the feature map: got size={s} on {H}×{W}. "
                f"Use one of {', '.join(str(d) for d in range(1, min(H, W) + 1) if H % d == W % d == 0)}."
            )
        offset = s // 2 if self.shift and max(H, W) > s else 0
        if offset:
            x_BHWC = torch.roll(x_BHWC, (-offset, -offset), (1, 2))
        q, k, v = (self._windows(p(x_BHWC)) for p in (self.q, self.k, self.v))
        y_BnhNd = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(H, W, offset))
        y_BHWC = self.o(self._merge(y_BnhNd, H, W))
        return torch.roll(y_BHWC, (offset, offset), (1, 2)) if offset else y_BHWC

    def _windows(self, x: Tensor) -> Tensor:
        """(B, H, W, h·d) to (B, n, h, s·s, d)."""
        _, H, W, _ = x.shape
        s, h, d = self.size, self.heads, self.head_dim
        x = x.reshape(-1, H // s, s, W // s, s, h, d).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(-1, (H // s) * (W // s), h, s * s, d)

    def _merge(self, y: Tensor, H: int, W: int) -> Tensor:
        """(B, n, h, s·s, d) to (B, H, W, h·d)."""
        s, h, d = self.size, self.heads, self.head_dim
        y = y.reshape(-1, H // s, W // s, h, s, s, d).permute(0, 1, 4, 2, 5, 3, 6)
        return y.reshape(-1, H, W, h * d)

    def _bias(self, H: int, W: int, offset: int) -> Tensor:
        """What is added to the scores, (1 or n, h, N, N): positions, and −∞ across the seam of a shift."""
        table = self.relative_bias
        index = torch.from_numpy(_relative_index(self.size)).to(table.device)
        N = self.size * self.size
        bias = table.flatten(1).index_select(1, index).reshape(1, self.heads, N, N)
        if not offset:
            return bias
        seam = torch.from_numpy(_seam(H, W, self.size, offset)).to(table.device, bias.dtype)
        return bias + seam[:, None]


@lru_cache(maxsize=64)
def _relative_index(size: int) -> np.ndarray:
    """Position in the flat bias table for each pair of tokens of a window, shape (N·N,)."""
    y, x = (c.ravel() for c in np.mgrid[:size, :size])
    dy, dx = (c[:, None] - c[None, :] + size - 1 for c in (y, x))
    return np.ascontiguousarray((dy * (2 * size - 1) + dx).ravel())


@lru_cache(maxsize=64)
def _seam(H: int, W: int, size: int, offset: int) -> np.ndarray:
    """0 where two tokens of a shifted window were neighbours before the roll, −∞ elsewhere; (n, N, N)."""
    region = np.zeros((H, W), dtype=np.int64)
    for i, rows in enumerate((slice(0, -size), slice(-size, -offset), slice(-offset, None))):
        for j, columns in enumerate((slice(0, -size), slice(-size, -offset), slice(-offset, None))):
            region[rows, columns] = 3 * i + j
    tokens = region.reshape(H // size, size, W // size, size).swapaxes(1, 2).reshape(-1, size * size)
    return np.where(tokens[:, :, None] == tokens[:, None, :], 0.0, -np.inf).astype(np.float32)
