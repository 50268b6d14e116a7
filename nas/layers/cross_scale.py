"""Convolutions of several sizes side by side, of one stride: cross-scale embedding
(CrossFormer, Wang et al., 2022, §3.1).

The smaller a kernel, the more channels it makes: one half, one quarter, … and the last as many as the one
before. Channels are dealt out in turn, by a pattern that repeats, so that fewer of them keep their scale.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layout import Layout


class CrossScale(nn.Module):
    """(B, C, H, W) to (B, D, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, kernels: tuple[int, ...], stride: int) -> None:
        super().__init__()
        period = 2 ** (len(kernels) - 1)
        if not kernels or width % period or any((k - stride) % 2 for k in kernels):
            raise SpaceError(
                f"Cross-scale embedding must have a width that is a multiple of {period} and kernels that "
                f"exceed the stride by even numbers: got width={width}, kernels={kernels}, stride={stride}."
            )
        self.kernels, self.width = kernels, width
        self.scales = nn.ModuleDict()
        for scale, k in enumerate(kernels):
            share = int((_scales(len(kernels), width) == scale).sum())
            self.scales[f"k{k}"] = nn.Conv2d(channels, share, k, stride, (k - stride) // 2)

    def layouts(self) -> dict[str, Layout]:
        return {f"scales.{n}.weight": Layout(tuple(c.weight.shape)) for n, c in self.scales.items()}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = torch.cat([self.scales[f"k{k}"](x_BCHW) for k in self.kernels], 1)
        order = torch.from_numpy(_dealt(len(self.kernels), self.width)).to(y.device)
        return y.index_select(1, order)


@lru_cache(maxsize=64)
def _scales(scales: int, width: int) -> np.ndarray:
    """Scale of each channel: 0 1 0 2 0 1 0 3 … (how often 2 divides its number)."""
    number = np.arange(1, width + 1)
    found = np.zeros(width, dtype=np.int64)
    for i in range(1, scales):
        found[number % 2**i == 0] = i
    return found


@lru_cache(maxsize=64)
def _dealt(scales: int, width: int) -> np.ndarray:
    """Where each channel stands when they are joined scale by scale, (width,)."""
    place = np.empty(width, dtype=np.int64)
    place[np.argsort(_scales(scales, width), kind="stable")] = np.arange(width)
    return place
