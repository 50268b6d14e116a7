"""Blocks of a map joined."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layers.choice import Downsample, Norm
from nas.layers.fields import gene
from nas.layers.norms import LayerNorm
from nas.layout import Layout


@dataclass(frozen=True)
class BlockAggregation(Downsample):
    """A convolution, a norm, and max-pooling of 3 × 3 with stride 2 (NesT, Zhang et al., 2022, §3.1)."""

    kernel: int = gene(3, 5, default=3, odd=True)
    norm: Norm = field(default=LayerNorm(), kw_only=True)

    def build(self, width: int, out_width: int) -> nn.Module:
        return Aggregation(width, out_width, self)


class Aggregation(nn.Module):
    def __init__(self, width: int, out_width: int, down: BlockAggregation) -> None:
        super().__init__()
        self.down = down
        self.aggregate = nn.Conv2d(width, out_width, down.kernel, padding=down.kernel // 2)
        self.aggregate_norm = down.norm.build(out_width)

    def layouts(self) -> dict[str, Layout]:
        return {"aggregate.weight": Layout(tuple(self.aggregate.weight.shape), centred=(2, 3))}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, D)."""
        if problem := self.down.misfit(*x_BHWC.shape[1:3]):
            raise SpaceError(f"Block aggregation {problem}")
        y_BHWD = self.aggregate_norm(self.aggregate(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return F.max_pool2d(y_BHWD.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
