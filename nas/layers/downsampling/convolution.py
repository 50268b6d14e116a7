"""Strided convolution between stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.choice import Downsample, Norm
from nas.layers.fields import gene
from nas.layers.norms import LayerNorm
from nas.layout import Layout


@dataclass(frozen=True)
class ConvDownsample(Downsample):
    """A convolution of stride 2. Its kernels overlap where they are larger than that (PVT v2, Wang et al.,
    2022, §3.2; CvT, Wu et al., 2021, §3.1), and lie side by side at 2.

    Attributes:
        norm: None: none.
        norm_first: before the convolution (ConvNeXt, Liu et al., 2022, §2.6), or after it.
    """

    kernel: int = gene(3, 5, default=3)
    norm: Norm | None = field(default=LayerNorm(), kw_only=True)
    norm_first: bool = field(default=False, kw_only=True)
    bias: bool = field(default=True, kw_only=True)

    def build(self, width: int, out_width: int) -> nn.Module:
        return StridedConvolution(width, out_width, self)


class StridedConvolution(nn.Module):
    def __init__(self, width: int, out_width: int, down: ConvDownsample) -> None:
        super().__init__()
        kernel = down.kernel
        self.down = down
        self.conv = nn.Conv2d(width, out_width, kernel, 2, (kernel - 1) // 2, bias=down.bias)
        normed = width if down.norm_first else out_width
        self.norm = down.norm.build(normed) if down.norm else nn.Identity()

    def layouts(self) -> dict[str, Layout]:
        return {"conv.weight": Layout(tuple(self.conv.weight.shape), centred=(2, 3))}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, D)."""
        if problem := self.down.misfit(*x_BHWC.shape[1:3]):
            raise SpaceError(f"A strided convolution {problem}")
        x = self.norm(x_BHWC) if self.down.norm_first else x_BHWC
        y_BHWD = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y_BHWD if self.down.norm_first else self.norm(y_BHWD)
