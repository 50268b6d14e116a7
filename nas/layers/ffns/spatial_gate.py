"""A channel mixer whose hidden units are gated by those of the neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.layers.activation import ACTIVATIONS
from nas.layers.choice import ChannelMixer, Norm
from nas.layers.ffns.mlp import hidden_units
from nas.layers.fields import gene, setting
from nas.layers.norms import LayerNorm
from nas.layout import Layout


@dataclass(frozen=True)
class SpatialGate(ChannelMixer):
    """One half of the hidden units gates the other, after a norm and a depthwise convolution
    (SGFN of DAT, Chen et al., 2023, §3.3, eq. 8).

    The units that are gated share `up` and `down` with `Mlp`; those that gate have weights of their own.
    Units nest as prefixes of their halves.

    Attributes:
        ratio: of hidden units, both halves together, to width.
        kernel: side of the convolution.
        norm: of the gating half.
    """

    ratio: float = gene(1, 2, 4)
    kernel: int = gene(3, 5, default=3, odd=True)
    activation: str = setting("gelu", among=ACTIVATIONS)
    norm: Norm = field(default=LayerNorm(), kw_only=True)

    def build(self, width: int) -> nn.Module:
        return SpatialGateLayers(width, hidden_units(width, self.ratio / 2), self)


class SpatialGateLayers(nn.Module):
    def __init__(self, width: int, units: int, ffn: SpatialGate) -> None:
        super().__init__()
        self.ffn, self.units = ffn, units
        self.act = ACTIVATIONS[ffn.activation]()
        self.up = nn.Linear(width, units)
        self.gating_up = nn.Linear(width, units)
        self.gating_norm = ffn.norm.build(units)
        self.gating_conv = nn.Conv2d(units, units, ffn.kernel, padding=ffn.kernel // 2, groups=units)
        self.down = nn.Linear(units, width)

    def layouts(self) -> dict[str, Layout]:
        kernel = self.ffn.kernel
        return {"gating_conv.weight": Layout((self.units, 1, kernel, kernel), centred=(2, 3))}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        gate_BHWU = self.gating_norm(self.act(self.gating_up(x_BHWC)))
        gate_BHWU = self.gating_conv(gate_BHWU.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.down(self.act(self.up(x_BHWC)) * gate_BHWU)
