"""Depthwise convolution as a mixer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nas.layers.choice import Mixer
from nas.layers.fields import gene
from nas.layout import Layout


@dataclass(frozen=True)
class DepthwiseConv(Mixer):
    """A convolution of each channel by itself, of `kernel` × `kernel` positions (ConvNeXt, Liu et al., 2022,
    §2.5). A smaller kernel is the middle of a larger one."""

    kernel: int = gene(3, 5, 7, odd=True)

    def build(self, width: int) -> nn.Module:
        return DepthwiseConvolution(width, self.kernel)


class DepthwiseConvolution(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)

    def layouts(self) -> dict[str, Layout]:
        return {"depthwise.weight": Layout(tuple(self.depthwise.weight.shape), centred=(2, 3))}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        return self.depthwise(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
