"""From pixels to tokens, from one stage to the next, and where a token stands.

Shapes: B batch, H and W height and width, C channels or width, D width after a change of resolution.
"""

from __future__ import annotations

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layout import Layout


class OverlapStem(nn.Module):
    """Convolution of stride `patch` whose kernels overlap (PVT v2, Wang et al., 2022, §3.2), then a norm."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        kernel = max(3, 2 * patch - 1)
        self.patch = patch
        self.conv = nn.Conv2d(channels, width, kernel, stride=patch, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / patch, W / patch, D)."""
        _require_multiple("stem.patch", self.patch, x_BCHW.shape[-2:])
        return self.norm(self.conv(x_BCHW).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Joins 2 × 2 neighbours: norm, then a linear layer from 4 C to D (Swin, Liu et al., 2021, §3.1)."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.width, self.out_width = width, out_width
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, out_width)

    def layouts(self) -> dict[str, Layout]:
        four = Layout((4, self.width))
        reduction = Layout((self.out_width, 4, self.width))
        return {"norm.weight": four, "norm.bias": four, "reduction.weight": reduction}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, D)."""
        _, H, W, C = x_BHWC.shape
        _require_multiple("patch merging", 2, (H, W))
        x = x_BHWC.reshape(-1, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 2, 4, 5)
        return self.reduction(self.norm(x.reshape(-1, H // 2, W // 2, 4 * C)))


class ConditionalPosition(nn.Module):
    """A depthwise 3 × 3 convolution beside the identity tells positions apart at any resolution
    (CPVT, Chu et al., 2023, §3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC + self.conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _require_multiple(what: str, step: int, sides: tuple[int, ...]) -> None:
    if any(side % step for side in sides):
        raise SpaceError(
            f"The map must be a multiple of {step} for {what}: got {'×'.join(map(str, sides))}. "
            f"Resize the images, or choose a space with fewer stages or another patch."
        )
