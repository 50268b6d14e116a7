"""Patches of several sizes."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.choice import Norm, Stem
from nas.layers.cross_scale import CrossScale
from nas.layers.fields import gene
from nas.layers.norms import LayerNorm


@dataclass(frozen=True)
class CrossScaleStem(Stem):
    """Convolutions of `patch`, 2·patch, … pixels with one stride, side by side (CrossFormer, Wang et al.,
    2022, §3.1). Weights of different patches are not shared, since their scales differ.

    Attributes:
        scales: how many.
        norm: after them; None: none.
    """

    patch: int = gene(2, 4)
    scales: int = field(default=3, kw_only=True)
    norm: Norm | None = field(default=LayerNorm(), kw_only=True)

    @property
    def stride(self) -> int:
        return self.patch

    def build(self, channels: int, width: int) -> nn.Module:
        return CrossScaleEmbedding(channels, width, self)


class CrossScaleEmbedding(nn.Module):
    def __init__(self, channels: int, width: int, stem: CrossScaleStem) -> None:
        super().__init__()
        self.stem = stem
        kernels = tuple(stem.patch * 2**i for i in range(stem.scales))
        self.add_module(f"patch{stem.patch}", CrossScale(channels, width, kernels, stem.patch))
        self.norm = stem.norm.build(width) if stem.norm else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / patch, W / patch, D)."""
        if problem := self.stem.misfit(*x_BCHW.shape[-2:]):
            raise SpaceError(f"A stem {problem}")
        y_BDhw = self.get_submodule(f"patch{self.stem.patch}")(x_BCHW)
        return self.norm(y_BDhw.permute(0, 2, 3, 1))
