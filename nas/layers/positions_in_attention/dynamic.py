"""A bias that a small network makes of offsets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from nas.layers.attention import AttentionPosition, PositionInAttention
from nas.layers.fields import gene
from nas.layers.grouping import relative_index


@dataclass(frozen=True)
class DynamicBias(AttentionPosition):
    """Scores get a number per head that a network of three layers makes of the offset (Δy, Δx), so groups may
    have any size (CrossFormer, Wang et al., 2022, §3.3)."""

    of_maps = True

    hidden: int = gene(8, 16, default=16)

    def build(self, heads: int, head_dim: int, value_dim: int, span: int | None) -> PositionInAttention:
        return DynamicBiasNetwork(heads, self.hidden)


class DynamicBiasNetwork(PositionInAttention):
    of_maps = True

    def __init__(self, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.dynamic = nn.ModuleDict(
            {
                "first": nn.Linear(2, hidden),
                "norm1": nn.LayerNorm(hidden),
                "second": nn.Linear(hidden, hidden),
                "norm2": nn.LayerNorm(hidden),
                "last": nn.Linear(hidden, heads),
            }
        )

    def bias(self, height: int, width: int) -> Tensor:
        height, width = int(height), int(width)  # an exporter's trace has tensors here
        layers, bias = self.dynamic, self.dynamic["first"].bias  # weights may be whole numbers in an export
        offsets = torch.from_numpy(_offsets(height, width)).to(bias)
        y = layers["second"](layers["norm1"](layers["first"](offsets)).relu())
        table_Oh = layers["last"](layers["norm2"](y).relu())
        index = torch.from_numpy(relative_index(height, width, height, width)).to(bias.device)
        N = height * width
        return table_Oh.index_select(0, index).T.reshape(self.heads, N, N)


@lru_cache(maxsize=64)
def _offsets(height: int, width: int) -> np.ndarray:
    """All offsets of a group, ((2·height − 1)·(2·width − 1), 2)."""
    dy, dx = np.mgrid[1 - height : height, 1 - width : width]
    return np.stack([dy.ravel(), dx.ravel()], 1).astype(np.float32)
