"""Pooling as a mixer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers.choice import Mixer
from nas.layers.fields import gene


@dataclass(frozen=True)
class Pooling(Mixer):
    """The mean of `size` × `size` neighbours minus the position itself (PoolFormer, Yu et al., 2022, §3.2;
    EfficientFormer, Li et al., 2022). Neighbours outside the map do not count."""

    has_weights = False

    size: int = gene(3, 5, odd=True)

    def build(self, width: int) -> nn.Module:
        return NeighbourMean(self.size)


class NeighbourMean(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        mean = F.avg_pool2d(x_BCHW, self.size, 1, self.size // 2, count_include_pad=False)
        return mean.permute(0, 2, 3, 1) - x_BHWC
