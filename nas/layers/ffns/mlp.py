"""The channel mixer of the transformer."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.layers.activation import ACTIVATIONS
from nas.layers.choice import ChannelMixer, Norm
from nas.layers.fields import gene, setting


@dataclass(frozen=True)
class Mlp(ChannelMixer):
    """Two linear layers; units nest as prefixes (MatFormer, Devvrit et al., 2023).

    Attributes:
        ratio: of hidden units to width.
        norm: after each layer (EfficientFormer, with batch norm, which folds away); None: none.
        sub_norm: norm before the second layer (Magneto); a block whose placement is "sub" sets it.
    """

    takes_tokens = True

    ratio: float = gene(1, 2, 4)
    activation: str = setting("gelu", among=ACTIVATIONS)
    bias: bool = field(default=True, kw_only=True)
    norm: Norm | None = field(default=None, kw_only=True)
    sub_norm: Norm | None = field(default=None, kw_only=True)

    def build(self, width: int) -> nn.Module:
        return MlpLayers(width, hidden_units(width, self.ratio), self)


class MlpLayers(nn.Module):
    pointwise = takes_tokens = True  # tokens beside the map pass through it as well

    def __init__(self, width: int, hidden: int, ffn: Mlp) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=ffn.bias)
        self.up_norm = ffn.norm.build(hidden) if ffn.norm else nn.Identity()
        self.act = ACTIVATIONS[ffn.activation]()
        self.sub_norm = ffn.sub_norm.build(hidden) if ffn.sub_norm else nn.Identity()
        self.down = nn.Linear(hidden, width, bias=ffn.bias)
        self.down_norm = ffn.norm.build(width) if ffn.norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) to (…, C)."""
        return self.down_norm(self.down(self.sub_norm(self.act(self.up_norm(self.up(x))))))


def hidden_units(width: int, ratio: float) -> int:
    """Rounded down, but one at least."""
    return max(1, int(width * ratio))
