"""Attention whose cost is linear in the positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nas.layers.attention import Attention, AttentionMixer
from nas.layers.fields import gene
from nas.layers.positions_in_attention.lepe import Lepe


@dataclass(frozen=True)
class LinearAttention(AttentionMixer):
    """Simplified linear attention: scores are products of rectified queries and keys, so keys meet values
    first; a depthwise convolution of the values makes up for what is lost near by (SLAB, Guo et al., 2024,
    §3.3)."""

    kernel: int = gene(3, 5, default=5, odd=True)

    def build(self, width: int) -> nn.Module:
        return SimplifiedLinearAttention(width, self)


class SimplifiedLinearAttention(Attention):
    def __init__(self, width: int, mixer: LinearAttention) -> None:
        super().__init__(width, mixer, Lepe(mixer.kernel))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        _, H, W, C = x_BHWC.shape
        q, k, v = (
            p(x_BHWC).flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)  # B heads N d
            for p in (self.q, self.k, self.v)
        )
        q, k = self.q_norm(q).relu(), self.k_norm(k).relu()
        sums = (q * k.mean(2, keepdim=True)).sum(-1, keepdim=True)
        y = q @ (k.transpose(2, 3) @ v / (H * W)) / (sums + 1e-6)
        local = self.position.local(v[:, None], H, W)
        assert local is not None
        y = y + local[:, 0]
        return self.out(y.transpose(1, 2).flatten(2)).reshape(-1, H, W, C)
