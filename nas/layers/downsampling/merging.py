"""Neighbours joined into one position."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.choice import Downsample, Norm
from nas.layers.norms import LayerNorm
from nas.layout import Layout


@dataclass(frozen=True)
class PatchMerging(Downsample):
    """Joins 2 × 2 neighbours: norm, then a linear layer from 4 C to D (Swin, Liu et al., 2021, §3.1)."""

    norm: Norm = field(default=LayerNorm(), kw_only=True)
    bias: bool = field(default=True, kw_only=True)

    def build(self, width: int, out_width: int) -> nn.Module:
        return Merging(width, out_width, self)


class Merging(nn.Module):
    def __init__(self, width: int, out_width: int, merging: PatchMerging) -> None:
        super().__init__()
        self.width, self.out_width, self.merging = width, out_width, merging
        self.merged_norm = merging.norm.build(4 * width)
        self.reduction = nn.Linear(4 * width, out_width, bias=merging.bias)

    def layouts(self) -> dict[str, Layout]:
        four = Layout((4, self.width))
        reduction = Layout((self.out_width, 4, self.width))
        return {"merged_norm.weight": four, "merged_norm.bias": four, "reduction.weight": reduction}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, D)."""
        _, H, W, C = x_BHWC.shape
        if problem := self.merging.misfit(H, W):
            raise SpaceError(f"Patch merging {problem}")
        x = x_BHWC.reshape(-1, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 2, 4, 5)
        return self.reduction(self.merged_norm(x.reshape(-1, H // 2, W // 2, 4 * C)))
