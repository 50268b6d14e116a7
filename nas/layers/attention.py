"""What all kinds of attention have in common: projections shared by name, and positions inside attention.

Shapes: B batch, n groups, h heads, N tokens of a group, d dimension of a head (queries and keys), e that of
values, C width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layers.choice import Choice, Mixer, Norm
from nas.layers.fields import gene
from nas.layers.grouping import join_heads, relative_index, split_heads
from nas.layout import Layout


@dataclass(frozen=True)
class AttentionPosition(Choice):
    """What tells attention where its tokens stand.

    Attributes:
        of_maps: whether all queries and keys must be those of the map, so that no tokens stand beside it.
        takes_pooled: whether there may be fewer queries than keys.
    """

    of_maps: ClassVar[bool] = False
    takes_pooled: ClassVar[bool] = False

    @abstractmethod
    def build(self, heads: int, head_dim: int, value_dim: int, span: int | None) -> PositionInAttention:
        """`span` is the side of a group, None where any map may come."""

    def clash(self, head_dim: int, span: int | None, height: int, width: int) -> str | None:
        """What is wrong with this position in groups of height × width tokens; the rest as of `build`."""
        return None


class PositionInAttention(nn.Module):
    """The three places at which a position can enter; each does nothing here."""

    of_maps = False  # as of the choice

    def bias(self, height: int, width: int) -> Tensor | None:
        """What is added to the scores of a group of height × width tokens, (h, N, N)."""
        return None

    def turn(self, q: Tensor, k: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, n, h, N, d) of a group of height × width tokens."""
        return q, k

    def local(self, v: Tensor, height: int, width: int, heads: slice = slice(None)) -> Tensor | None:
        """What is added to the answer, from values (B, n, h, N, e) of these `heads`."""
        return None


@dataclass(frozen=True)
class NoPosition(AttentionPosition):
    """Attention that does not know where its tokens stand."""

    takes_pooled = True

    def build(self, heads: int, head_dim: int, value_dim: int, span: int | None) -> PositionInAttention:
        return PositionInAttention()


@dataclass(frozen=True)
class RelativeBias(AttentionPosition):
    """A learned number per head and offset, added to the scores (Swin, Liu et al., 2021, §3.2)."""

    of_maps = True

    def build(self, heads: int, head_dim: int, value_dim: int, span: int | None) -> PositionInAttention:
        if span is None:
            raise SpaceError(f"Attention {NO_SPAN}")
        return RelativeBiasTable(heads, span)

    def clash(self, head_dim: int, span: int | None, height: int, width: int) -> str | None:
        return NO_SPAN if span is None else None


NO_SPAN = (
    "must have groups of one size, which tell RelativeBias its largest offset. Use it in windows, or "
    "DynamicBias, which any map may have."
)


class RelativeBiasTable(PositionInAttention):
    """Table of (heads, 2·span − 1, 2·span − 1), offset 0 at its centre."""

    of_maps = True

    def __init__(self, heads: int, span: int) -> None:
        super().__init__()
        self.heads, self.span = heads, span
        self.relative = nn.Parameter(torch.zeros(heads, 2 * span - 1, 2 * span - 1))

    def layouts(self) -> dict[str, Layout]:
        return {"relative": Layout((self.heads, 2 * self.span - 1, 2 * self.span - 1), centred=(1, 2))}

    def bias(self, height: int, width: int) -> Tensor:
        N = height * width
        index = torch.from_numpy(relative_index(height, width, self.span, self.span))
        picked = self.relative.flatten(1).index_select(1, index.to(self.relative.device))
        return picked.reshape(self.heads, N, N)


@dataclass(frozen=True)
class AttentionMixer(Mixer):
    """Attention of any kind. Head count, dimension of queries and keys, dimension of values and the
    residual width are independent of each other (NViT, Yang et al., 2023, §3.1).

    Attributes:
        value_dim: dimension of a head's values; None: `head_dim`.
        qk_norm: norm of each head's queries and keys (Henry et al., 2020; Dehghani et al., 2023).
        sub_norm: norm before the output projection (Magneto, Wang et al., 2022); a block whose placement
            is "sub" sets it.
    """

    heads: int = gene(1, 2, 4)
    head_dim: int = gene(8, 16, default=8, kw_only=True)
    value_dim: int | None = gene(8, 16, default=None, kw_only=True)
    qkv_bias: bool = field(default=True, kw_only=True)
    out_bias: bool = field(default=True, kw_only=True)
    qk_norm: Norm | None = field(default=None, kw_only=True)
    sub_norm: Norm | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class PositionedAttention(AttentionMixer):
    """Attention within groups of tokens, that may be told where these stand."""

    position: AttentionPosition = field(default=NoPosition(), kw_only=True)

    @property
    def span(self) -> int | None:
        """Side of a group; None where it depends on the map."""
        return None

    @abstractmethod
    def group(self, height: int, width: int) -> tuple[int, int]:
        """Sides of a group of a map of height × width."""

    def misfit(self, height: int, width: int) -> str | None:
        return self.position.clash(self.head_dim, self.span, *self.group(height, width))

    def misfit_pooling(self, height: int, width: int, stride: int) -> str | None:
        if self.position.takes_pooled:
            return self.misfit(height // stride, width // stride)
        return (
            f"must have as many queries as keys for {self.position.__class__.__name__}: got queries pooled "
            f"by {stride}. Use NoPosition there."
        )


class Attention(nn.Module):
    """Projections that all kinds of attention share by name: q, k, v, o."""

    def __init__(
        self,
        width: int,
        mixer: AttentionMixer,
        position: AttentionPosition,
        span: int | None = None,
        *,
        out_width: int | None = None,
    ) -> None:
        super().__init__()
        self.out_width = out_width or width
        self.width, self.heads, self.head_dim = width, mixer.heads, mixer.head_dim
        self.value_dim = mixer.value_dim or mixer.head_dim
        self.scale = self.head_dim**-0.5
        self.q = nn.Linear(width, self.heads * self.head_dim, bias=mixer.qkv_bias)
        self.k = nn.Linear(width, self.heads * self.head_dim, bias=mixer.qkv_bias)
        self.v = nn.Linear(width, self.heads * self.value_dim, bias=mixer.qkv_bias)
        self.o = nn.Linear(self.heads * self.value_dim, self.out_width, bias=mixer.out_bias)
        self.q_norm = mixer.qk_norm.build(self.head_dim) if mixer.qk_norm else nn.Identity()
        self.k_norm = mixer.qk_norm.build(self.head_dim) if mixer.qk_norm else nn.Identity()
        self.sub_norm = mixer.sub_norm.build(self.heads * self.value_dim) if mixer.sub_norm else nn.Identity()
        self.position = position.build(self.heads, self.head_dim, self.value_dim, span)

    def layouts(self) -> dict[str, Layout]:
        by_head = {"q": self.head_dim, "k": self.head_dim, "v": self.value_dim}
        rows = {f"{p}.weight": Layout((self.heads, d, self.width)) for p, d in by_head.items()}
        biases = {f"{p}.bias": Layout((self.heads, d)) for p, d in by_head.items()}
        inner = Layout((self.heads, self.value_dim))
        return {
            **rows,
            **biases,
            "o.weight": Layout((self.out_width, self.heads, self.value_dim)),
            "sub_norm.weight": inner,
            "sub_norm.bias": inner,
        }

    def attend(
        self,
        q_BnNC: Tensor,
        k_BnMC: Tensor,
        v_BnMC: Tensor,
        height: int,
        width: int,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Answers (B, n, N, h·e), before the output projection, of N queries to M keys within n groups.

        `height` and `width` are the sides of a group; `mask` is added to the scores, (n or 1, 1, N, M).

        Raises:
            SpaceError: a position that only maps have, where tokens stand beside them or queries are pooled.
        """
        N, M = q_BnNC.shape[2], k_BnMC.shape[2]
        if self.position.of_maps and not N == M == height * width:
            raise SpaceError(
                f"{type(self.position).__name__} must find a query and a key at each position of the map and "
                f"no others: got {N} queries and {M} keys on {height}×{width}. Use NoPosition where tokens "
                f"stand beside the map (or Rotary) or where queries are pooled."
            )
        q, k = (split_heads(x, self.heads) for x in (q_BnNC, k_BnMC))
        v_BnhMe = split_heads(v_BnMC, self.heads)
        q, k = self.position.turn(self.q_norm(q), self.k_norm(k), height, width)
        bias = self.position.bias(height, width)
        if bias is not None and mask is not None:
            bias = bias + mask
        y = attention(q, k, v_BnhMe, mask if bias is None else bias, self.scale)
        local = self.position.local(v_BnhMe, height, width)
        return join_heads(y if local is None else y + local)

    def out(self, y: Tensor) -> Tensor:
        """(…, h·e) to (…, C)."""
        return self.o(self.sub_norm(y))

    @abstractmethod
    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Answers (B, n, h, N, e) of queries (B, n, h, N, d) to keys (B, n, h, M, d) and values (B, n, h, M, e).

    PyTorch's fused kernels take four axes; for few tokens the plain products are faster. Which it is follows
    from shapes alone, so that a subnet answers to the last bit as its extracted module does.
    """
    B, n, _, N, _ = q.shape
    if torch.jit.is_tracing() or N < FUSED or not (mask is None or n == 1):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).unflatten(0, (B, n))


FUSED = 64
"""Tokens of a group from which on the fused kernel is faster in training, on CPUs too."""


def pooled(x_BHWC: Tensor, stride: int) -> Tensor:
    """The largest of stride × stride neighbours, as queries are pooled (Hiera, Ryali et al., 2023, §3)."""
    if stride == 1:
        return x_BHWC
    return F.max_pool2d(x_BHWC.permute(0, 3, 1, 2), stride).permute(0, 2, 3, 1)
