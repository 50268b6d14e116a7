"""A map in groups of tokens that see one another, and back.

Shapes: B batch, H and W height and width of the map, C channels, n groups, h and w sides of a group.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from torch import Tensor


def split(x_BHWC: Tensor, h: int, w: int) -> Tensor:
    """Tiles of h × w neighbours: (B, H, W, C) to (B, n, h·w, C)."""
    _, H, W, C = x_BHWC.shape
    x = x_BHWC.reshape(-1, H // h, h, W // w, w, C).transpose(2, 3)
    return x.reshape(-1, (H // h) * (W // w), h * w, C)


def join(x_BnNC: Tensor, H: int, W: int, h: int, w: int) -> Tensor:
    """What `split` took apart."""
    C = x_BnNC.shape[-1]
    x = x_BnNC.reshape(-1, H // h, W // w, h, w, C).transpose(2, 3)
    return x.reshape(-1, H, W, C)


def split_every(x_BHWC: Tensor, interval: int) -> Tensor:
    """Groups of positions `interval` apart: (B, H, W, C) to (B, interval², H·W / interval², C)."""
    _, H, W, C = x_BHWC.shape
    i = interval
    x = x_BHWC.reshape(-1, H // i, i, W // i, i, C).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, i * i, (H // i) * (W // i), C)


def join_every(x_BnNC: Tensor, H: int, W: int, interval: int) -> Tensor:
    """What `split_every` took apart."""
    C, i = x_BnNC.shape[-1], interval
    x = x_BnNC.reshape(-1, i, i, H // i, W // i, C).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, H, W, C)


def split_heads(x_BnNC: Tensor, heads: int) -> Tensor:
    """(B, n, N, heads·d) to (B, n, heads, N, d)."""
    B, n, N, C = x_BnNC.shape
    return x_BnNC.reshape(B, n, N, heads, C // heads).transpose(2, 3)


def join_heads(x_BnhNd: Tensor) -> Tensor:
    """(B, n, heads, N, d) to (B, n, N, heads·d)."""
    return x_BnhNd.transpose(2, 3).flatten(3)


@lru_cache(maxsize=64)
def relative_index(h: int, w: int, span_h: int, span_w: int) -> np.ndarray:
    """Place in a flat table of (2·span_h − 1) × (2·span_w − 1) offsets for each pair of tokens of an
    h × w group, shape (N·N,)."""
    y, x = (c.ravel() for c in np.mgrid[:h, :w])
    dy, dx = y[:, None] - y[None, :] + span_h - 1, x[:, None] - x[None, :] + span_w - 1
    return np.ascontiguousarray((dy * (2 * span_w - 1) + dx).ravel())


@lru_cache(maxsize=64)
def seam(H: int, W: int, size: int, offset: int) -> np.ndarray:
    """0 where two tokens of a shifted window were neighbours before the roll, −∞ elsewhere; (n, N, N)."""
    region = np.zeros((H, W), dtype=np.int64)
    for i, rows in enumerate((slice(0, -size), slice(-size, -offset), slice(-offset, None))):
        for j, columns in enumerate((slice(0, -size), slice(-size, -offset), slice(-offset, None))):
            region[rows, columns] = 3 * i + j
    tokens = region.reshape(H // size, size, W // size, size).swapaxes(1, 2).reshape(-1, size * size)
    return np.where(tokens[:, :, None] == tokens[:, None, :], 0.0, -np.inf).astype(np.float32)
