"""Attention in mask units."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.attention import Attention, PositionedAttention, pooled
from nas.layers.choice import not_multiple
from nas.layers.fields import gene
from nas.layers.grouping import join, split


@dataclass(frozen=True)
class MaskUnit(PositionedAttention):
    """Attention within units of `size` × `size` positions, with no bells and whistles (Hiera, Ryali et al.,
    2023, §3). Where queries are pooled, units are as many, and as much larger before."""

    size: int = gene(2, 4)

    @property
    def span(self) -> int:
        return self.size

    def group(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size

    def build(self, width: int) -> nn.Module:
        return MaskUnitAttention(width, self)

    def build_pooling(self, width: int, out_width: int, stride: int) -> nn.Module:
        return MaskUnitAttention(width, self, out_width, stride)

    def misfit(self, height: int, width: int) -> str | None:
        misfit = not_multiple("units of that size", self.size, height, width)
        return misfit or super().misfit(height, width)


class MaskUnitAttention(Attention):
    def __init__(self, width: int, mixer: MaskUnit, out_width: int | None = None, stride: int = 1) -> None:
        super().__init__(width, mixer, mixer.position, mixer.span, out_width=out_width)
        self.mixer, self.stride = mixer, stride

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / stride, W / stride, D)."""
        s, (H, W) = self.mixer.size, (side // self.stride for side in x_BHWC.shape[1:3])
        if problem := self.mixer.misfit(H, W):
            raise SpaceError(f"A mask unit {problem}")
        q = split(pooled(self.q(x_BHWC), self.stride), s, s)
        k, v = (split(p(x_BHWC), s * self.stride, s * self.stride) for p in (self.k, self.v))
        return self.out(join(self.attend(q, k, v, s, s), H, W, s, s))
