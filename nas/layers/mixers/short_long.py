"""Attention to what is near, and to what is far."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.attention import Attention, AttentionPosition, PositionedAttention
from nas.layers.choice import not_multiple
from nas.layers.fields import gene
from nas.layers.grouping import join, join_every, split, split_every
from nas.layers.positions_in_attention.dynamic import DynamicBias


@dataclass(frozen=True)
class ShortDistance(PositionedAttention):
    """Attention among `size` × `size` neighbours (CrossFormer, Wang et al., 2022, §3.2)."""

    size: int = gene(2, 4)
    position: AttentionPosition = field(default=DynamicBias(), kw_only=True)

    def build(self, width: int) -> nn.Module:
        return ShortDistanceAttention(width, self)

    def misfit(self, height: int, width: int) -> str | None:
        misfit = not_multiple("groups of neighbours", self.size, height, width)
        return misfit or super().misfit(height, width)

    @property
    def span(self) -> int:
        return self.size

    def group(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size


class ShortDistanceAttention(Attention):
    def __init__(self, width: int, mixer: ShortDistance) -> None:
        super().__init__(width, mixer, mixer.position, mixer.span)
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
class LongDistance(PositionedAttention):
    """Attention among positions that lie `interval` apart from one another, over the whole map (CrossFormer,
    Wang et al., 2022, §3.2)."""

    interval: int = gene(2, 4)
    position: AttentionPosition = field(default=DynamicBias(), kw_only=True)

    def build(self, width: int) -> nn.Module:
        return LongDistanceAttention(width, self)

    def misfit(self, height: int, width: int) -> str | None:
        misfit = not_multiple("an interval", self.interval, height, width)
        return misfit or super().misfit(height, width)

    def group(self, height: int, width: int) -> tuple[int, int]:
        return height // self.interval, width // self.interval


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
