"""Convolution whose kernels overlap."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.activation import ACTIVATIONS
from nas.layers.choice import Norm, Stem
from nas.layers.fields import gene, setting
from nas.layers.norms import LayerNorm
from nas.layout import Layout


@dataclass(frozen=True)
class OverlapStem(Stem):
    """A convolution of stride `patch` whose kernels overlap, then a norm (PVT v2, Wang et al., 2022, §3.2).

    Attributes:
        kernel: its side; None: 2·patch − 1, at least 3.
        padding: None: half a kernel.
        norm: after it; None: none.
        activation: after that (Xiao et al., 2021, §4); None: none.
    """

    patch: int = gene(1, 2, default=1)
    kernel: int | None = field(default=None, kw_only=True)
    padding: int | None = setting(None, least=0)
    norm: Norm | None = field(default=LayerNorm(), kw_only=True)
    activation: str | None = setting(None, among=ACTIVATIONS)

    @property
    def stride(self) -> int:
        return self.patch

    @property
    def sides(self) -> tuple[int, int]:
        """Of the kernel, and of the padding around the image."""
        kernel = self.kernel or max(3, 2 * self.patch - 1)
        return kernel, kernel // 2 if self.padding is None else self.padding

    def after(self, side: int) -> int:
        kernel, padding = self.sides
        return (side + 2 * padding - kernel) // self.patch + 1

    def misfit(self, height: int, width: int) -> str | None:
        kernel, padding = self.sides
        if min(height, width) + 2 * padding < kernel:
            return (
                f"must not have a kernel that is larger than the image: got kernel={kernel}, "
                f"padding={padding} on {height}×{width}. Use a smaller one."
            )
        return super().misfit(height, width)

    def build(self, channels: int, width: int) -> nn.Module:
        return OverlapConvolution(channels, width, self)


class OverlapConvolution(nn.Module):
    def __init__(self, channels: int, width: int, stem: OverlapStem) -> None:
        super().__init__()
        self.stem = stem
        kernel, padding = stem.sides
        self.conv = nn.Conv2d(channels, width, kernel, stride=stem.patch, padding=padding)
        self.norm = stem.norm.build(width) if stem.norm else nn.Identity()
        self.act = ACTIVATIONS[stem.activation]() if stem.activation else nn.Identity()

    def layouts(self) -> dict[str, Layout]:
        return {"conv.weight": Layout(tuple(self.conv.weight.shape), centred=(2, 3))}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, h, w, D), with the sides that `OverlapStem.after` says."""
        if problem := self.stem.misfit(*x_BCHW.shape[-2:]):
            raise SpaceError(f"A stem {problem}")
        return self.act(self.norm(self.conv(x_BCHW).permute(0, 2, 3, 1)))
