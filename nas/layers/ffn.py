"""Channel mixers: what a block does at each position by itself."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Module):
    """Two linear layers with a GELU between; units nest as prefixes (MatFormer, Devvrit et al., 2023)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) to (…, C)."""
        return self.down(F.gelu(self.up(x)))
