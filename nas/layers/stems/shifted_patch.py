"""Patches that see beyond their edges."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layers.choice import Norm, Stem
from nas.layers.fields import gene
from nas.layers.norms import LayerNorm
from nas.layout import Layout

SHIFTS = ((0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
"""The image itself, and moved along its diagonals."""


@dataclass(frozen=True)
class ShiftedPatchStem(Stem):
    """The image and four copies, moved by half a patch along the diagonals, are cut into patches together; a
    norm and a linear layer follow (shifted patch tokenization, Lee et al., 2021, §3.1)."""

    patch: int = gene(2, 4)
    norm: Norm = field(default=LayerNorm(), kw_only=True)

    @property
    def stride(self) -> int:
        return self.patch

    def build(self, channels: int, width: int) -> nn.Module:
        return ShiftedPatches(channels, width, self)


class ShiftedPatches(nn.Module):
    def __init__(self, channels: int, width: int, stem: ShiftedPatchStem) -> None:
        super().__init__()
        self.channels, self.width, self.stem = channels, width, stem
        pixels = len(SHIFTS) * channels * stem.patch**2
        self.shifted_norm = stem.norm.build(pixels)
        self.shifted = nn.Linear(pixels, width)

    def layouts(self) -> dict[str, Layout]:
        pixels = (len(SHIFTS), self.channels, self.stem.patch, self.stem.patch)
        return {
            "shifted_norm.weight": Layout(pixels),
            "shifted_norm.bias": Layout(pixels),
            "shifted.weight": Layout((self.width, *pixels)),
        }

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / patch, W / patch, D)."""
        _, C, H, W = x_BCHW.shape
        if problem := self.stem.misfit(H, W):
            raise SpaceError(f"A stem {problem}")
        p, by = self.stem.patch, max(1, self.stem.patch // 2)
        copies = [F.pad(x_BCHW, (dx * by, -dx * by, dy * by, -dy * by)) for dy, dx in SHIFTS]
        x = torch.stack(copies, 1).reshape(-1, len(SHIFTS) * C, H // p, p, W // p, p)
        patches = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, H // p, W // p, len(SHIFTS) * C * p * p)
        return self.shifted(self.shifted_norm(patches))
