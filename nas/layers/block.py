"""A transformer block."""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """Pre-norm residual block: tokens mix, then channels (Xiong et al., 2020)."""

    def __init__(self, width: int, mixer: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(width)
        self.ffn = ffn

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = x_BHWC + self.mixer(self.norm1(x_BHWC))
        return x_BHWC + self.ffn(self.norm2(x_BHWC))
