"""Attention of every position to all."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas.layers.attention import Attention, AttentionMixer, AttentionPosition, NoPosition
from nas.layers.choice import Parts


@dataclass(frozen=True)
class Global(AttentionMixer):
    """Attention of every position, and of tokens beside the map, to all (Vaswani et al., 2017)."""

    position: AttentionPosition = field(default=NoPosition(), kw_only=True)

    def build(self, width: int) -> nn.Module:
        return GlobalAttention(width, self)


class GlobalAttention(Attention):
    """Takes a map (B, H, W, C) and, if there are any, tokens (B, T, C); gives the same."""

    def __init__(self, width: int, mixer: Global) -> None:
        super().__init__(width, mixer, mixer.position)

    def forward(self, x_BHWC: Tensor, t_BTC: Tensor | None = None) -> Tensor | Parts:
        _, H, W, C = x_BHWC.shape
        x_B1NC = x_BHWC.reshape(-1, 1, H * W, C)
        if t_BTC is not None:
            x_B1NC = torch.cat([t_BTC[:, None], x_B1NC], 2)
        q, k, v = (p(x_B1NC) for p in (self.q, self.k, self.v))
        y_BNC = self.out(self.attend(q, k, v, H, W))[:, 0]
        if t_BTC is None:
            return y_BNC.reshape(-1, H, W, C)
        T = t_BTC.shape[1]
        return y_BNC[:, T:].reshape(-1, H, W, C), y_BNC[:, :T]
