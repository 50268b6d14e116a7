"""Queries pooled inside attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layers.choice import Downsample
from nas.layers.fields import gene


@dataclass(frozen=True)
class QueryPooling(Downsample):
    """The first block of the stage does it: its mixer sees the larger map and pools its queries, and what
    goes past the mixer is projected to the new width and max-pooled (MViT, Fan et al., 2021, §3.2; MViT v2,
    Li et al., 2022, §4.3; Hiera, Ryali et al., 2023, §3).

    Attributes:
        kernel: of the max-pooling beside the mixer, 2 side by side or 3 overlapping.
    """

    kernel: int = gene(2, 3, default=2)

    def build(self, width: int, out_width: int) -> nn.Module:
        raise SpaceError("Query pooling must be built with the first block of its stage: `build_pooling`.")

    def pooled(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, C)."""
        if problem := self.misfit(*x_BHWC.shape[1:3]):
            raise SpaceError(f"Query pooling {problem}")
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        return F.max_pool2d(x_BCHW, self.kernel, 2, (self.kernel - 1) // 2).permute(0, 2, 3, 1)
