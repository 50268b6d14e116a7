"""Attention between channels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers.attention import Attention, AttentionMixer, NoPosition


@dataclass(frozen=True)
class Channel(AttentionMixer):
    """The channels of a head attend to one another, over all positions, with a learned temperature per head
    (XCiT, El-Nouby et al., 2021, §3.2; DAT, Chen et al., 2023, §3.2)."""

    value_dim: None = field(default=None, kw_only=True)  # a channel of the values answers to one of the keys
    qk_norm: None = field(default=None, kw_only=True)  # keys and queries have norms of their own: of length 1

    def build(self, width: int) -> nn.Module:
        return ChannelAttention(width, self)


class ChannelAttention(Attention):
    def __init__(self, width: int, mixer: Channel) -> None:
        super().__init__(width, mixer, NoPosition())
        self.channel_temperature = nn.Parameter(torch.ones(self.heads))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        _, H, W, C = x_BHWC.shape
        q, k, v = (
            p(x_BHWC).flatten(1, 2).unflatten(2, (self.heads, -1)).permute(0, 2, 3, 1)  # B heads d N
            for p in (self.q, self.k, self.v)
        )
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        scores_Bhdd = (q @ k.transpose(2, 3)) * self.channel_temperature[:, None, None]
        y_BhdN = scores_Bhdd.softmax(-1) @ v
        # Of a transposed tensor, a product folds the batch or not, and so rounds, by who requires gradients.
        y_BNe = y_BhdN.permute(0, 3, 1, 2).flatten(2).contiguous()
        return self.out(y_BNe).reshape(-1, H, W, C)
