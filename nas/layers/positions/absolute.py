"""Positions from a learned table."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers.choice import Position
from nas.layers.fields import gene


@dataclass(frozen=True)
class AbsolutePosition(Position):
    """A learned vector per position of a map of `side` × `side`, interpolated to other maps
    (ViT, Dosovitskiy et al., 2021, §3.1 and 3.2).

    Attributes:
        antialias: how tables are interpolated, which published models do one way or the other.
    """

    side: int = gene(8)
    antialias: bool = field(default=False, kw_only=True)

    def build(self, width: int) -> nn.Module:
        return AbsoluteTable(width, self)


class AbsoluteTable(nn.Module):
    def __init__(self, width: int, position: AbsolutePosition) -> None:
        super().__init__()
        self.antialias = position.antialias
        self.table = nn.Parameter(torch.zeros(position.side, position.side, width))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        _, H, W, _ = x_BHWC.shape
        return x_BHWC + resized(self.table, H, W, self.antialias)


def resized(table_HWC: Tensor, height: int, width: int, antialias: bool = False) -> Tensor:
    """A table of positions for a map of other sides, bicubic."""
    if table_HWC.shape[:2] == (height, width):
        return table_HWC
    x = table_HWC.permute(2, 0, 1)[None]
    x = F.interpolate(x, (height, width), mode="bicubic", align_corners=False, antialias=antialias)
    return x[0].permute(1, 2, 0)
