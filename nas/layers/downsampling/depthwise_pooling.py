"""Pooling by a depthwise convolution."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.choice import Downsample, Parts
from nas.layers.fields import gene
from nas.layout import Layout


@dataclass(frozen=True)
class DepthwisePooling(Downsample):
    """A convolution of stride 2 by which each channel becomes several (PiT, Heo et al., 2021, §3.1). The new
    width is a multiple of the old; odd sides round up. Weights follow the channel that they make.

    Attributes:
        tokens: whether tokens come beside the map, for which there is a linear layer.
    """

    kernel: int = gene(3, 5, default=3, odd=True)
    tokens: bool = field(default=False, kw_only=True)

    @property
    def takes_tokens(self) -> bool:  # type: ignore[override]
        return self.tokens

    def build(self, width: int, out_width: int) -> nn.Module:
        if out_width % width:
            raise SpaceError(
                f"Depthwise pooling must multiply the width by a whole number: got {width} to {out_width}."
            )
        return DepthwisePool(width, out_width, self)

    def after(self, side: int) -> int:
        return (side + 1) // 2

    def misfit(self, height: int, width: int) -> str | None:
        return None


class DepthwisePool(nn.Module):
    takes_tokens = True

    def __init__(self, width: int, out_width: int, down: DepthwisePooling) -> None:
        super().__init__()
        self.pool = nn.Conv2d(width, out_width, down.kernel, 2, down.kernel // 2, groups=width)
        self.pool_token = nn.Linear(width, out_width) if down.tokens else None

    def layouts(self) -> dict[str, Layout]:
        return {"pool.weight": Layout(tuple(self.pool.weight.shape), centred=(2, 3))}

    def forward(self, x_BHWC: Tensor, t_BTC: Tensor | None = None) -> Tensor | Parts:
        """(B, H, W, C) to (B, ⌈H / 2⌉, ⌈W / 2⌉, D), tokens (B, T, C) to (B, T, D)."""
        y_BHWD = self.pool(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if t_BTC is None:
            return y_BHWD
        if self.pool_token is None:
            raise SpaceError(
                "Depthwise pooling must have a layer for the tokens beside the map: got tokens=False and "
                f"{t_BTC.shape[1]} of them. Use tokens=True."
            )
        return y_BHWD, self.pool_token(t_BTC)
