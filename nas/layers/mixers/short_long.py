"""Attention to what is near, and to what is far."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.attention import Attention, AttentionMixer, AttentionPosition
from nas.layers.choice import gene, not_multiple
from nas.layers.grouping import join, join_every, split, split_every
from nas.layers.positions_in_attention.dynamic import DynamicBias


@dataclass(frozen=True)
class ShortDistance(AttentionMixer):
    """Attention among `size` × `size` neighbours (CrossFormer, Wang et al., 2022, §3.2)."""

    size: int = gene(2, 4)
    position: AttentionPosition = field(default=DynamicBias(), kw_only=True)

    def build(self, width: int) -> nn.Module:
        return ShortDistanceAttention(width, self)

    def misfit(self, height: int, width: int) -> str | None:
        return not_multiple("groups of neighbours", self.size, height, width)


class ShortDistanceAttention(Attention):
    def __init__(self, width: int, mixer: ShortDistance) -> None:
        super().__init__(width, mixer, mixer.position, mixer.size)
        self.mixer = mixer

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        _, H, W, _ = x_BHWC.shape
        s = self.mixer.size
        if problem := self.mixer.misfit(H, W):
            raise SpaceError(f"Short-distance attention {problem}")
        q, k, v = (split(p(x_BHWC), s, s) for p in (self.q, self.k, self.v))
        return self.out(join(self.attend(q, k, v, s, s), H, W, s, s))


@dataclass(frozen=True)
class LongDistance(AttentionMixer):
    """Attention among positions that lie `interval` apart from one another, over the whole map (CrossFormer,
    Wang et al., 2022, §3.2)."""

    interval: int = gene(2, 4)
    position: AttentionPosition = field(default=DynamicBias(), kw_only=True)

    def build(self, width: int) -> nn.Module:
        return LongDistanceAttention(width, self)

    def misfit(self, height: int, width: int) -> str | None:
        return not_multiple("an interval", self.interval, height, width)


class LongDistanceAttention(Attention):
    def __init__(self, width: int, mixer: LongDistance) -> None:
        super().__init__(width, mixer, mixer.position)
        self.mixer = mixer

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        _, H, W, _ = x_BHWC.shape
        i = self.mixer.interval
        if problem := self.mixer.misfit(H, W):
            raise SpaceError(f"Long-distance attention {problem}")
        q, k, v = (split_every(p(x_BHWC), i) for p in (self.q, self.k, self.v))
        return self.out(join_every(self.attend(q, k, v, H // i, W // i), H, W, i))
