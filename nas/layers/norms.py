"""Norms over channels, which are the last axis of everything here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.layers.choice import Norm


@dataclass(frozen=True)
class LayerNorm(Norm):
    """Mean 0 and variance 1 over the channels of each position (Ba et al., 2016)."""

    eps: float = 1e-5

    def build(self, width: int) -> nn.Module:
        return nn.LayerNorm(width, eps=self.eps)


@dataclass(frozen=True)
class RMSNorm(Norm):
    """Mean square 1 over the channels of each position (Zhang & Sennrich, 2019)."""

    eps: float = 1e-6

    def build(self, width: int) -> nn.Module:
        return ChannelRMSNorm(width, eps=self.eps)


class ChannelRMSNorm(nn.RMSNorm):
    """PyTorch's, written out for exporters, of which some do not know it."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_tracing():
            return super().forward(x)
        assert self.eps is not None
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


@dataclass(frozen=True)
class NoNorm(Norm):
    """Nothing: the parts of the block hold norms of their own, or none."""

    def build(self, width: int) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True)
class BatchNorm(Norm):
    """Each channel by its statistics over the training data (Ioffe & Szegedy, 2015); folds away."""

    eps: float = 1e-5

    def build(self, width: int) -> nn.Module:
        return ChannelBatchNorm(width, eps=self.eps)


@dataclass(frozen=True)
class RepBN(Norm):
    """Batch norm plus a learned share of its input; folds into a neighbouring linear layer
    (SLAB, Guo et al., 2024, §3.2)."""

    eps: float = 1e-5

    def build(self, width: int) -> nn.Module:
        return ReparameterisedBatchNorm(width, eps=self.eps)


class ChannelBatchNorm(nn.BatchNorm1d):
    """Batch norm over the last axis of (…, C)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.reshape(-1, input.shape[-1])).reshape(input.shape)

    def as_affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (C,), that give the same in evaluation mode."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight / (self.running_var + self.eps).sqrt()
        return scale, self.bias - scale * self.running_mean


class ReparameterisedBatchNorm(ChannelBatchNorm):
    """`BatchNorm(x) + alpha · x`."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__(width, eps=eps)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.alpha * input

    def as_affine(self) -> tuple[Tensor, Tensor]:
        """As of any batch norm (SLAB, eq. 7)."""
        scale, shift = super().as_affine()
        return scale + self.alpha, shift
