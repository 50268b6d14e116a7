"""Attention whose projections look at neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas.layers.attention import Attention, AttentionMixer, NoPosition
from nas.layers.choice import Norm, Parts
from nas.layers.fields import gene
from nas.layers.norms import BatchNorm
from nas.layout import Layout


@dataclass(frozen=True)
class ConvProjection(AttentionMixer):
    """Before each of the projections a depthwise convolution and a norm; that of keys and values may have a
    stride (CvT, Wu et al., 2021, §3.2). Tokens beside the map go to the projections as they are."""

    takes_tokens = True

    kv_stride: int = gene(1, 2)
    kernel: int = gene(3, 5, default=3, kw_only=True, odd=True)
    norm: Norm = field(default=BatchNorm(), kw_only=True)

    def build(self, width: int) -> nn.Module:
        return ConvProjectionAttention(width, self)


class ConvProjectionAttention(Attention):
    takes_tokens = True

    def __init__(self, width: int, mixer: ConvProjection) -> None:
        super().__init__(width, mixer, NoPosition())
        strides = {"q": 1, "k": mixer.kv_stride, "v": mixer.kv_stride}
        self.before = nn.ModuleDict(
            {p: NeighbourProjection(width, mixer, stride) for p, stride in strides.items()}
        )

    def forward(self, x_BHWC: Tensor, t_BTC: Tensor | None = None) -> Tensor | Parts:
        """(B, H, W, C), and tokens (B, T, C) if there are any, to the same."""
        _, H, W, C = x_BHWC.shape
        inputs = [self.before[p](x_BHWC).flatten(1, 2) for p in "qkv"]
        if t_BTC is not None:
            inputs = [torch.cat([t_BTC, x], 1) for x in inputs]
        q, k, v = (p(x)[:, None] for p, x in zip((self.q, self.k, self.v), inputs, strict=True))
        y_BNC = self.out(self.attend(q, k, v, H, W))[:, 0]
        if t_BTC is None:
            return y_BNC.reshape(-1, H, W, C)
        T = t_BTC.shape[1]
        return y_BNC[:, T:].reshape(-1, H, W, C), y_BNC[:, :T]


class NeighbourProjection(nn.Module):
    def __init__(self, width: int, mixer: ConvProjection, stride: int) -> None:
        super().__init__()
        kernel = mixer.kernel
        self.conv = nn.Conv2d(width, width, kernel, stride, kernel // 2, groups=width, bias=False)
        self.norm = mixer.norm.build(width)

    def layouts(self) -> dict[str, Layout]:
        return {"conv.weight": Layout(tuple(self.conv.weight.shape), centred=(2, 3))}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.norm(self.conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
