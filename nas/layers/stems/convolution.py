"""Stems of several convolutions."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.activation import ACTIVATIONS
from nas.layers.choice import Norm, Stem
from nas.layers.fields import gene, setting
from nas.layers.norms import BatchNorm


@dataclass(frozen=True)
class ConvStem(Stem):
    """`depth` convolutions of 3 × 3 and stride 2, each with norm and activation, whose width doubles from
    one to the next (Xiao et al., 2021, §4; EfficientFormer, Li et al., 2022)."""

    depth: int = gene(1, 2)
    norm: Norm = field(default=BatchNorm(), kw_only=True)
    activation: str = setting("relu", among=ACTIVATIONS)

    @property
    def stride(self) -> int:
        return 2**self.depth

    def build(self, channels: int, width: int) -> nn.Module:
        if width % 2 ** (self.depth - 1):
            raise SpaceError(
                f"A stem of {self.depth} convolutions must have a width that halves {self.depth - 1} times: "
                f"got {width}. Choose another width, or a smaller `depth`."
            )
        return Convolutions(channels, width, self)


class Convolutions(nn.Module):
    """Stems of different depth share no weights: their layers have other widths and see other things."""

    def __init__(self, channels: int, width: int, stem: ConvStem) -> None:
        super().__init__()
        self.stem = stem
        widths = [channels, *(width // 2 ** (stem.depth - 1 - i) for i in range(stem.depth))]
        self.layers = nn.ModuleDict()
        for i, (before, after) in enumerate(pairwise(widths)):
            self.layers[f"{i}_of_{stem.depth}"] = nn.ModuleDict(
                {"conv": nn.Conv2d(before, after, 3, 2, 1), "norm": stem.norm.build(after)}
            )
        self.act = ACTIVATIONS[stem.activation]()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / stride, W / stride, D)."""
        if problem := self.stem.misfit(*x_BCHW.shape[-2:]):
            raise SpaceError(f"A stem {problem}")
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        for layer in self.layers.values():
            x_BHWC = layer["conv"](x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x_BHWC = self.act(layer["norm"](x_BHWC))
        return x_BHWC


@dataclass(frozen=True)
class ConvPatchStem(Stem):
    """A convolution of 7 × 7 and stride 2 with norm and ReLU, then patches (Visformer, Chen et al., 2021).

    Attributes:
        features: of the convolution.
        norm: after the convolution and after the patches.
    """

    patch: int = gene(1, 2)
    features: int = gene(16, 32, default=32, kw_only=True)
    norm: Norm = field(default=BatchNorm(), kw_only=True)

    @property
    def stride(self) -> int:
        return 2 * self.patch

    def build(self, channels: int, width: int) -> nn.Module:
        return ConvolutionThenPatches(channels, width, self)


class ConvolutionThenPatches(nn.Module):
    def __init__(self, channels: int, width: int, stem: ConvPatchStem) -> None:
        super().__init__()
        self.stem = stem
        self.early = nn.Conv2d(channels, stem.features, 7, 2, 3, bias=False)
        self.early_norm = stem.norm.build(stem.features)
        self.early_patches = nn.Conv2d(stem.features, width, stem.patch, stride=stem.patch)
        self.norm = stem.norm.build(width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / stride, W / stride, D)."""
        if problem := self.stem.misfit(*x_BCHW.shape[-2:]):
            raise SpaceError(f"A stem {problem}")
        y_BHWC = self.early_norm(self.early(x_BCHW).permute(0, 2, 3, 1)).relu()
        return self.norm(self.early_patches(y_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
