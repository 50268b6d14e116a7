"""A change of resolution with a way past it."""

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
class ResidualReduction(Downsample):
    """Norm and a convolution of stride 2, plus the mean of 2 × 2 neighbours, whose channels stay where they
    are and are followed by zeros (residual spatial reduction; ViT-ResNAS, Liao et al., 2021, §3.2)."""

    kernel: int = gene(3, 5, default=3, odd=True)
    norm: Norm = field(default=LayerNorm(), kw_only=True)

    def build(self, width: int, out_width: int) -> nn.Module:
        if out_width < width:
            raise SpaceError(
                f"Residual reduction must not lose channels: got a width of {width} and then {out_width}. "
                f"Choose widths that grow, or another `down`."
            )
        return ResidualConvolution(width, out_width, self)


class ResidualConvolution(nn.Module):
    def __init__(self, width: int, out_width: int, down: ResidualReduction) -> None:
        super().__init__()
        self.down, self.more = down, out_width - width
        self.norm = down.norm.build(width)
        self.reduce = nn.Conv2d(width, out_width, down.kernel, 2, down.kernel // 2)

    def layouts(self) -> dict[str, Layout]:
        return {"reduce.weight": Layout(tuple(self.reduce.weight.shape), centred=(2, 3))}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, D)."""
        if problem := self.down.misfit(*x_BHWC.shape[1:3]):
            raise SpaceError(f"Residual reduction {problem}")
        y_BDhw = self.reduce(self.norm(x_BHWC).permute(0, 3, 1, 2))
        past_BChw = F.avg_pool2d(x_BHWC.permute(0, 3, 1, 2), 2)
        return (y_BDhw + F.pad(past_BChw, (0, 0, 0, 0, 0, self.more))).permute(0, 2, 3, 1)
