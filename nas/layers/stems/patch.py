"""Patches side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.choice import Norm, Stem
from nas.layers.fields import gene


@dataclass(frozen=True)
class PatchStem(Stem):
    """One linear layer per patch of `patch` × `patch` pixels (ViT, Dosovitskiy et al., 2021, §3.1).

    Attributes:
        norm: after it; None: none.
    """

    patch: int = gene(1, 2)
    norm: Norm | None = field(default=None, kw_only=True)

    @property
    def stride(self) -> int:
        return self.patch

    def build(self, channels: int, width: int) -> nn.Module:
        return PatchProjection(channels, width, self)


class PatchProjection(nn.Module):
    def __init__(self, channels: int, width: int, stem: PatchStem) -> None:
        super().__init__()
        self.stem = stem
        self.patches = nn.Conv2d(channels, width, stem.patch, stride=stem.patch)
        self.norm = stem.norm.build(width) if stem.norm else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / patch, W / patch, D)."""
        if problem := self.stem.misfit(*x_BCHW.shape[-2:]):
            raise SpaceError(f"A stem {problem}")
        return self.norm(self.patches(x_BCHW).permute(0, 2, 3, 1))
