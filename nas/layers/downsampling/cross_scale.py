"""Neighbourhoods of several sizes."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.choice import Downsample, Norm
from nas.layers.cross_scale import CrossScale
from nas.layers.norms import LayerNorm


@dataclass(frozen=True)
class CrossScaleDownsample(Downsample):
    """Norm, then convolutions of several sizes and stride 2 side by side (CrossFormer, Wang et al., 2022,
    §3.1)."""

    kernels: tuple[int, ...] = field(default=(2, 4))
    norm: Norm = field(default=LayerNorm(), kw_only=True)

    def build(self, width: int, out_width: int) -> nn.Module:
        return CrossScaleReduction(width, out_width, self)


class CrossScaleReduction(nn.Module):
    def __init__(self, width: int, out_width: int, down: CrossScaleDownsample) -> None:
        super().__init__()
        self.down = down
        self.norm = down.norm.build(width)
        self.cross = CrossScale(width, out_width, down.kernels, 2)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, D)."""
        if problem := self.down.misfit(*x_BHWC.shape[1:3]):
            raise SpaceError(f"Cross-scale embedding {problem}")
        return self.cross(self.norm(x_BHWC).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
