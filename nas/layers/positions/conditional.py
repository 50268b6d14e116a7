"""Positions told from neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nas.layers.choice import Position
from nas.layers.fields import gene
from nas.layout import Layout


@dataclass(frozen=True)
class ConditionalPosition(Position):
    """A depthwise convolution beside the identity tells positions apart at any resolution
    (CPVT, Chu et al., 2023, §3.2)."""

    kernel: int = gene(3, 5, default=3, odd=True)

    def build(self, width: int) -> nn.Module:
        return ConditionalEncoding(width, self.kernel)


class ConditionalEncoding(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)

    def layouts(self) -> dict[str, Layout]:
        return {"conv.weight": Layout(tuple(self.conv.weight.shape), centred=(2, 3))}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC + self.conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
