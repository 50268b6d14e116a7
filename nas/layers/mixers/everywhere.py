"""Attention of every position to all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.layers.attention import Attention, PositionedAttention, pooled
from nas.layers.choice import Parts


@dataclass(frozen=True)
class Global(PositionedAttention):
    """Attention of every position, and of tokens beside the map, to all (Vaswani et al., 2017)."""

    @property
    def takes_tokens(self) -> bool:  # type: ignore[override]
        return not self.position.of_maps

    def group(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def build(self, width: int) -> nn.Module:
        return GlobalAttention(width, self)

    def build_pooling(self, width: int, out_width: int, stride: int) -> nn.Module:
        return GlobalAttention(width, self, out_width, stride)


class GlobalAttention(Attention):
    """Takes a map (B, H, W, C) and, if there are any, tokens (B, T, C); gives the same, or a smaller map
    where queries are pooled, which is for maps without tokens."""

    takes_tokens = True

    def __init__(self, width: int, mixer: Global, out_width: int | None = None, stride: int = 1) -> None:
        super().__init__(width, mixer, mixer.position, out_width=out_width)
        self.stride = stride

    def forward(self, x_BHWC: Tensor, t_BTC: Tensor | None = None) -> Tensor | Parts:
        if t_BTC is not None:
            return self._with_tokens(x_BHWC, t_BTC)
        _, H, W, _ = x_BHWC.shape
        q = pooled(self.q(x_BHWC), self.stride)
        q, k, v = (x.flatten(1, 2)[:, None] for x in (q, self.k(x_BHWC), self.v(x_BHWC)))
        y_BNC = self.out(self.attend(q, k, v, H, W))[:, 0]
        return y_BNC.reshape(-1, H // self.stride, W // self.stride, self.out_width)

    def _with_tokens(self, x_BHWC: Tensor, t_BTC: Tensor) -> Parts:
        _, H, W, C = x_BHWC.shape
        x_B1NC = torch.cat([t_BTC, x_BHWC.flatten(1, 2)], 1)[:, None]
        q, k, v = (p(x_B1NC) for p in (self.q, self.k, self.v))
        y_BNC = self.out(self.attend(q, k, v, H, W))[:, 0]
        T = t_BTC.shape[1]
        return y_BNC[:, T:].reshape(-1, H, W, C), y_BNC[:, :T]
