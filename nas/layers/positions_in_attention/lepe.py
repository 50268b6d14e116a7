"""Positions from the values of neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers.attention import AttentionPosition, PositionInAttention
from nas.layers.fields import gene
from nas.layout import Layout


@dataclass(frozen=True)
class Lepe(AttentionPosition):
    """A depthwise convolution of the values within their group, added to the answer: locally-enhanced
    positional encoding (CSWin, Dong et al., 2022, §3.3); takes any resolution."""

    of_maps = True

    kernel: int = gene(3, 5, default=3, odd=True)

    def build(self, heads: int, head_dim: int, value_dim: int, span: int | None) -> PositionInAttention:
        return LocalValues(heads, value_dim, self.kernel)


class LocalValues(PositionInAttention):
    of_maps = True

    def __init__(self, heads: int, value_dim: int, kernel: int) -> None:
        super().__init__()
        self.heads, self.value_dim, self.kernel = heads, value_dim, kernel
        inner = heads * value_dim
        self.lepe = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner)

    def layouts(self) -> dict[str, Layout]:
        h, e, k = self.heads, self.value_dim, self.kernel
        return {"lepe.weight": Layout((h, e, 1, k, k), centred=(3, 4)), "lepe.bias": Layout((h, e))}

    def local(self, v: Tensor, height: int, width: int, heads: slice = slice(None)) -> Tensor:
        _, n, h, N, e = v.shape
        both = self.lepe.weight, self.lepe.bias  # by name: what is stored in few bits changes the order
        weight, bias = (p.unflatten(0, (self.heads, e))[heads].flatten(0, 1) for p in both)
        v_BCHW = v.transpose(3, 4).reshape(-1, h * e, height, width)
        y = F.conv2d(v_BCHW, weight, bias, padding=self.kernel // 2, groups=h * e)
        return y.reshape(-1, n, h, e, N).transpose(3, 4)
