"""Attention in windows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.attention import Attention, AttentionPosition, PositionedAttention, RelativeBias
from nas.layers.fields import gene
from nas.layers.grouping import join, seam, split


@dataclass(frozen=True)
class Window(PositionedAttention):
    """Attention within windows of `size` × `size`; `shift` moves them by half their side, so that
    neighbours of the layer before meet (Swin, Liu et al., 2021, §3.2). As there, nothing shifts on a map
    that is one window high or wide."""

    size: int = gene(2, 4)
    shift: bool = gene(False, True, default=False)
    position: AttentionPosition = field(default=RelativeBias(), kw_only=True)

    @property
    def span(self) -> int:
        return self.size

    def group(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size

    def build(self, width: int) -> nn.Module:
        return WindowAttention(width, self)

    def misfit(self, height: int, width: int) -> str | None:
        s = self.size
        if height % s == 0 and width % s == 0:
            return super().misfit(height, width)
        sides = [str(d) for d in range(1, min(height, width) + 1) if height % d == width % d == 0]
        return (
            f"must divide the feature map: got size={s} on {height}×{width}. Use one of {', '.join(sides)}."
        )


class WindowAttention(Attention):
    """Raises SpaceError for a map that is no multiple of the window."""

    def __init__(self, width: int, mixer: Window) -> None:
        super().__init__(width, mixer, mixer.position, mixer.span)
        self.mixer = mixer

    def forward(self, x_BHWC: Tensor) -> Tensor:
        _, H, W, _ = x_BHWC.shape
        s = self.mixer.size
        if problem := self.mixer.misfit(H, W):
            raise SpaceError(f"A window {problem}")
        offset = s // 2 if self.mixer.shift and min(H, W) > s else 0
        if offset:
            x_BHWC = torch.roll(x_BHWC, (-offset, -offset), (1, 2))
        q, k, v = (split(p(x_BHWC), s, s) for p in (self.q, self.k, self.v))
        mask = torch.from_numpy(seam(H, W, s, offset))[:, None].to(q.device, q.dtype) if offset else None
        y_BHWC = self.out(join(self.attend(q, k, v, s, s, mask), H, W, s, s))
        return torch.roll(y_BHWC, (offset, offset), (1, 2)) if offset else y_BHWC
