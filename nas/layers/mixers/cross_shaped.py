"""Attention along rows and columns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.attention import Attention, AttentionPosition, PositionedAttention, attention
from nas.layers.choice import not_multiple
from nas.layers.fields import gene
from nas.layers.grouping import join, join_heads, split, split_heads
from nas.layers.positions_in_attention.lepe import Lepe


@dataclass(frozen=True)
class CrossShaped(PositionedAttention):
    """Half of the heads attend within horizontal stripes `stripe` positions thick, the other half within
    vertical ones: a cross around each position (CSWin, Dong et al., 2022, §3.2). A stripe as thick as the map
    is all of it.

    Heads take turns, the first being horizontal, so that any number of them keeps its direction when cut.
    """

    stripe: int = gene(1, 2, 4)
    position: AttentionPosition = field(default=Lepe(), kw_only=True)

    def build(self, width: int) -> nn.Module:
        return CrossShapedAttention(width, self)

    def misfit(self, height: int, width: int) -> str | None:
        misfit = not_multiple("stripes of that thickness", self.stripe, height, width)
        return misfit or super().misfit(height, width)

    def group(self, height: int, width: int) -> tuple[int, int]:
        return self.stripe, max(height, width)


class CrossShapedAttention(Attention):
    def __init__(self, width: int, mixer: CrossShaped) -> None:
        super().__init__(width, mixer, mixer.position)
        self.mixer = mixer

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        _, H, W, _ = x_BHWC.shape
        s = self.mixer.stripe
        if problem := self.mixer.misfit(H, W):
            raise SpaceError(f"A cross {problem}")
        q, k, v = (p(x_BHWC) for p in (self.q, self.k, self.v))
        horizontal = self._stripes(q, k, v, s, W, 0)
        if self.heads == 1:
            return self.out(horizontal.flatten(3))
        vertical = self._stripes(q, k, v, H, s, 1)
        return self.out(_alternating(horizontal, vertical).flatten(3))

    def _stripes(self, q: Tensor, k: Tensor, v: Tensor, h: int, w: int, first: int) -> Tensor:
        """Answers of every other head from `first` on, within stripes of h × w: (B, H, W, heads, e)."""
        _, H, W, _ = q.shape
        mine = slice(first, None, 2)
        q, k, v = (split_heads(split(x, h, w), self.heads)[:, :, mine] for x in (q, k, v))  # B n heads N d
        q, k = self.position.turn(self.q_norm(q), self.k_norm(k), h, w)
        bias = self.position.bias(h, w)
        y = attention(q, k, v, None if bias is None else bias[mine], self.scale)
        local = self.position.local(v, h, w, mine)
        y = y if local is None else y + local
        return join(join_heads(y), H, W, h, w).unflatten(3, (-1, self.value_dim))


def _alternating(even: Tensor, odd: Tensor) -> Tensor:
    """Heads (B, H, W, n, e) put in turn; `even` may have one more."""
    paired = torch.stack([even[..., : odd.shape[3], :], odd], 4).flatten(3, 4)
    return torch.cat([paired, even[..., odd.shape[3] :, :]], 3)
