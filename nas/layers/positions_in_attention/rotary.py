"""Queries and keys turned by where they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nas.errors import SpaceError
from nas.layers.attention import AttentionPosition, PositionInAttention


@dataclass(frozen=True)
class Rotary(AttentionPosition):
    """Pairs of channels of queries and keys turn by an angle that grows with the row, or with the column, of
    the token, so that scores depend on offsets (RoFormer, Su et al., 2021; along two axes as in Heo et al.,
    2024, §3.2).

    Pairs take turns between rows and columns, and the k-th of either turns by base^(−k/8) per position,
    whatever the dimension of a head: so a smaller head keeps the angles of its channels. A head of two
    channels has one pair, which tells rows apart and not columns.
    """

    base: float = field(default=100.0)

    def build(self, heads: int, head_dim: int, value_dim: int, span: int | None) -> PositionInAttention:
        if problem := self.clash(head_dim, span, 0, 0):
            raise SpaceError(f"Attention {problem}")
        return RotaryTurn(head_dim, self.base)

    def clash(self, head_dim: int, span: int | None, height: int, width: int) -> str | None:
        return f"must have an even `head_dim` for Rotary: got {head_dim}." if head_dim % 2 else None


class RotaryTurn(PositionInAttention):
    """Has no weights. Tokens beside the map, which come first, do not turn."""

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def turn(self, q: Tensor, k: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        if q.shape[3] != k.shape[3]:
            raise SpaceError(
                f"Rotary positions must find as many queries as keys: got {q.shape[3]} and {k.shape[3]}. Use "
                f"another position where queries are pooled."
            )
        # Only cos and sin may be rounded: an angle in half precision would be off by radians far away.
        angles = torch.from_numpy(_angles(height, width, self.head_dim, self.base)).to(q.device)
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
        beside = q.shape[3] - height * width
        cos, sin = _after(cos, beside, 1.0), _after(sin, beside, 0.0)
        return _turned(q, cos, sin), _turned(k, cos, sin)


def _after(values_ND: Tensor, rows: int, value: float) -> Tensor:
    """`rows` rows of `value` before the others."""
    return torch.nn.functional.pad(values_ND, (0, 0, rows, 0), value=value) if rows else values_ND


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (a, b) of channels of x (…, N, d) to (a cos − b sin, a sin + b cos)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


@lru_cache(maxsize=64)
def _angles(height: int, width: int, head_dim: int, base: float) -> np.ndarray:
    """Angle of every pair of channels at every position, (height·width, head_dim / 2)."""
    pair = np.arange(head_dim // 2)
    frequency = base ** -((pair // 2) / 8)
    y, x = (c.ravel()[:, None] for c in np.mgrid[: int(height), : int(width)])
    return (np.where(pair % 2 == 0, y, x) * frequency).astype(np.float32)
