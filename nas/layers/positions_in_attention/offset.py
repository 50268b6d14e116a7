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

    of_maps = True

    span: int = field(default=8)

    def build(self, heads: int, head_dim: int, value_dim: int, span: int | None) -> PositionInAttention:
        return OffsetBiasTable(heads, span or self.span)

    def clash(self, head_dim: int, span: int | None, height: int, width: int) -> str | None:
        return out_of_span(span or self.span, height, width)


class OffsetBiasTable(PositionInAttention):
    """Table of (heads, span, span), distance 0 first."""

    of_maps = True

    def __init__(self, heads: int, span: int) -> None:
        super().__init__()
        self.heads, self.span = heads, span
        self.offset = nn.Parameter(torch.zeros(heads, span, span))

    def bias(self, height: int, width: int) -> Tensor:
        height, width = int(height), int(width)  # an exporter's trace has tensors here
        if problem := out_of_span(self.span, height, width):
            raise SpaceError(f"Attention {problem}")
        N = height * width
        index = torch.from_numpy(_distances(height, width, self.span)).to(self.offset.device)
        return self.offset.flatten(1).index_select(1, index).reshape(self.heads, N, N)


def out_of_span(span: int, height: int, width: int) -> str | None:
    if max(height, width) <= span:
        return None
    return (
        f"must have groups that the span of OffsetBias holds: got {height}×{width} for span={span}. Raise "
        f"`position.span`, or use a position that any map may have."
    )


@lru_cache(maxsize=64)
def _distances(height: int, width: int, span: int) -> np.ndarray:
    """Place in a flat (span, span) table for each pair of tokens, shape (N·N,)."""
    y, x = (c.ravel() for c in np.mgrid[:height, :width])
    dy, dx = abs(y[:, None] - y[None, :]), abs(x[:, None] - x[None, :])
    return np.ascontiguousarray((dy * span + dx).ravel())
