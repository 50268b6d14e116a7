"""Attention over pooled queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layers.attention import Attention, AttentionMixer, NoPosition
from nas.layers.choice import Norm, not_multiple
from nas.layers.fields import gene
from nas.layers.grouping import join_heads
from nas.layers.norms import LayerNorm
from nas.layout import Layout


@dataclass(frozen=True)
class Pooled(AttentionMixer):
    """Queries, keys and values of each head go through a convolution of stride 1, or `kv_stride`, and a norm;
    the queries are added to the answer, and positions enter as learned vectors per offset along each axis, by
    which the queries are multiplied (MViT v2, Li et al., 2022, §4.1 and 4.2).

    Attributes:
        span: largest side of a map of queries or of keys.
    """

    kv_stride: int = gene(1, 2)
    span: int = gene(8, 16, default=16)
    kernel: int = gene(3, 5, default=3, kw_only=True, odd=True)
    norm: Norm = field(default=LayerNorm(), kw_only=True)
    value_dim: None = field(default=None, kw_only=True)  # queries are added to values: no gene here
    qk_norm: None = field(default=None, kw_only=True)  # `norm` is that of queries, keys and values

    def build(self, width: int) -> nn.Module:
        return PooledAttention(width, self)

    def build_pooling(self, width: int, out_width: int, stride: int) -> nn.Module:
        if problem := self.out_of_step(stride):
            raise SpaceError(f"Pooled attention {problem}")
        return PooledAttention(width, self, out_width, stride)

    def misfit_pooling(self, height: int, width: int, stride: int) -> str | None:
        keys = height // self.kv_stride, width // self.kv_stride
        queries = height // stride, width // stride
        return self.out_of_step(stride) or self.misfit(*queries) or self.out_of_span(*keys)

    def out_of_step(self, stride: int) -> str | None:
        if stride % self.kv_stride == 0 or self.kv_stride % stride == 0:
            return None
        return (
            f"must have strides of which one divides the other, so that offsets are whole steps: got "
            f"{stride} for queries and kv_stride={self.kv_stride}. Use kv_stride={stride}."
        )

    def misfit(self, height: int, width: int) -> str | None:
        too_far = self.out_of_span(height, width)
        return too_far or not_multiple("pooled keys", self.kv_stride, height, width)

    def out_of_span(self, height: int, width: int) -> str | None:
        if max(height, width) <= self.span:
            return None
        return (
            f"must have a span of at least {max(height, width)} on {height}×{width}: got "
            f"span={self.span}. Raise it."
        )


class PooledAttention(Attention):
    def __init__(self, width: int, mixer: Pooled, out_width: int | None = None, stride: int = 1) -> None:
        super().__init__(width, mixer, NoPosition(), out_width=out_width)
        self.mixer, self.stride = mixer, stride
        self.pool_q, self.pool_k, self.pool_v = (
            HeadPooling(self.head_dim, mixer, s) for s in (stride, mixer.kv_stride, mixer.kv_stride)
        )
        self.offsets_h, self.offsets_w = (
            nn.Parameter(torch.zeros(2 * mixer.span - 1, self.head_dim)) for _ in range(2)
        )

    def layouts(self) -> dict[str, Layout]:
        table = Layout((2 * self.mixer.span - 1, self.head_dim), centred=(0,))
        return super().layouts() | {"offsets_h": table, "offsets_w": table}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / stride, W / stride, D)."""
        H, W = (side // self.stride for side in x_BHWC.shape[1:3])
        if problem := self.mixer.misfit(H, W):
            raise SpaceError(f"Pooled attention {problem}")
        q, k, v = (  # B heads h w d
            pool(p(x_BHWC).unflatten(3, (self.heads, -1)).permute(0, 3, 1, 2, 4))
            for p, pool in zip((self.q, self.k, self.v), (self.pool_q, self.pool_k, self.pool_v), strict=True)
        )
        if problem := self.mixer.out_of_span(*k.shape[2:4]):  # more keys than queries, where those are pooled
            raise SpaceError(f"Pooled attention {problem}")
        bias = self._bias(q, k.shape[2:4])
        q, k, v = (x.flatten(2, 3) for x in (q, k, v))
        y_BhNd = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale) + q
        return self.out(join_heads(y_BhNd[:, None])[:, 0]).reshape(-1, H, W, self.out_width)

    def _bias(self, q_BhHWd: Tensor, keys: tuple[int, ...]) -> Tensor:
        """Queries times the vectors of their offsets, (B, heads, N, M)."""
        (H, W), (h, w) = q_BhHWd.shape[2:4], keys
        rows_Hhd = self.offsets_h[self._offsets(H, h)]
        columns_Wwd = self.offsets_w[self._offsets(W, w)]
        by_row = torch.einsum("bnHWd,Hhd->bnHWh", q_BhHWd, rows_Hhd)
        by_column = torch.einsum("bnHWd,Wwd->bnHWw", q_BhHWd, columns_Wwd)
        return (by_row[..., None] + by_column[..., None, :]).flatten(4).flatten(2, 3)

    def _offsets(self, queries: int, keys: int) -> Tensor:
        """Places in a table, (queries, keys)."""
        index = _offsets(int(queries), int(keys), self.mixer.span)  # a trace has tensors here
        return torch.from_numpy(index).to(self.offsets_h.device)


class HeadPooling(nn.Module):
    """A depthwise convolution that all heads share, then a norm: (B, heads, H, W, d) to (…, h, w, d)."""

    def __init__(self, head_dim: int, mixer: Pooled, stride: int) -> None:
        super().__init__()
        kernel = mixer.kernel
        self.conv = nn.Conv2d(head_dim, head_dim, kernel, stride, kernel // 2, groups=head_dim, bias=False)
        self.norm = mixer.norm.build(head_dim)

    def layouts(self) -> dict[str, Layout]:
        return {"conv.weight": Layout(tuple(self.conv.weight.shape), centred=(2, 3))}

    def forward(self, x: Tensor) -> Tensor:
        heads = x.shape[1]
        y = self.conv(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(y).unflatten(0, (-1, heads))


@lru_cache(maxsize=64)
def _offsets(queries: int, keys: int, span: int) -> np.ndarray:
    """Offset of each pair, in steps of the finer of both maps, 0 at span − 1."""
    finer = max(queries, keys)
    y = np.arange(queries)[:, None] * (finer // queries) - np.arange(keys)[None, :] * (finer // keys)
    return np.ascontiguousarray(y + span - 1)
