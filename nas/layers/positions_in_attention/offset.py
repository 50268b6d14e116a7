"""A bias by distance."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.attention import AttentionPosition, PositionInAttention


@dataclass(frozen=True)
class OffsetBias(AttentionPosition):
    """A learned number per head and distance (|Δy|, |Δx|), added to the scores: the same to both sides
    (LeViT, Graham et al., 2021, §4.4; EfficientFormer).

    Attributes:
        span: side of the largest group.
    """

    span: int = field(default=8)

    def build(self, heads: int, head_dim: int, value_dim: int, span: int | None) -> PositionInAttention:
        return OffsetBiasTable(heads, span or self.span)


class OffsetBiasTable(PositionInAttention):
    """Table of (heads, span, span), distance 0 first."""

    of_maps = True

    def __init__(self, heads: int, span: int) -> None:
        super().__init__()
        self.heads, self.span = heads, span
        self.offset = nn.Parameter(torch.zeros(heads, span, span))

    def bias(self, height: int, width: int) -> Tensor:
        height, width = int(height), int(width)  # an exporter's trace has tensors here
        if max(height, width) > self.span:
            raise SpaceError(
                f"The span of an offset bias must hold its groups: got {height}×{width} for "
                f"span={self.span}. Raise `position.span`, or use a position that any map may have."
            )
        N = height * width
        index = torch.from_numpy(_distances(height, width, self.span)).to(self.offset.device)
        return self.offset.flatten(1).index_select(1, index).reshape(self.heads, N, N)


@lru_cache(maxsize=64)
def _distances(height: int, width: int, span: int) -> np.ndarray:
    """Place in a flat (span, span) table for each pair of tokens, shape (N·N,)."""
    y, x = (c.ravel() for c in np.mgrid[:height, :width])
    dy, dx = abs(y[:, None] - y[None, :]), abs(x[:, None] - x[None, :])
    return np.ascontiguousarray((dy * span + dx).ravel())
