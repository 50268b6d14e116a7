"""A channel mixer whose hidden units are gated."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.layers.activation import ACTIVATIONS
from nas.layers.choice import ChannelMixer, Norm
from nas.layers.ffns.mlp import hidden_units
from nas.layers.fields import gene, setting


@dataclass(frozen=True)
class Gated(ChannelMixer):
    """down(act(gate(x)) ⊙ up(x)): GLU with a sigmoid, SwiGLU with SiLU, GEGLU with GELU (Shazeer, 2020, §2).

    Units nest as prefixes; `up` and `down` are those of `Mlp`.

    Attributes:
        ratio: of hidden units to width. At two thirds of an `Mlp`'s it has as many parameters.
        sub_norm: norm before the last layer (Magneto); a block whose placement is "sub" sets it.
    """

    takes_tokens = True

    ratio: float = gene(1, 2, 4)
    activation: str = setting("silu", among=ACTIVATIONS)
    bias: bool = field(default=True, kw_only=True)
    sub_norm: Norm | None = field(default=None, kw_only=True)

    def build(self, width: int) -> nn.Module:
        return GatedLayers(width, hidden_units(width, self.ratio), self)


class GatedLayers(nn.Module):
    pointwise = takes_tokens = True  # tokens beside the map pass through it as well

    def __init__(self, width: int, hidden: int, ffn: Gated) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=ffn.bias)
        self.gate = nn.Linear(width, hidden, bias=ffn.bias)
        self.act = ACTIVATIONS[ffn.activation]()
        self.sub_norm = ffn.sub_norm.build(hidden) if ffn.sub_norm else nn.Identity()
        self.down = nn.Linear(hidden, width, bias=ffn.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) to (…, C)."""
        return self.down(self.sub_norm(self.act(self.gate(x)) * self.up(x)))
