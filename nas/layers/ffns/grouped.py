"""An MLP with a convolution in groups."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from nas.layers.activation import ACTIVATIONS
from nas.layers.choice import ChannelMixer
from nas.layers.fields import gene, setting
from nas.layout import Layout


@dataclass(frozen=True)
class GroupedConvMlp(ChannelMixer):
    """Up, a 3 × 3 convolution of the hidden units in groups, down, an activation after each of the first two
    (Visformer, Chen et al., 2021, §3.2). Hidden units nest within their group.

    Attributes:
        ratio: of hidden units to width; rounded down to a multiple of `groups`.
    """

    ratio: float = gene(1, 2)
    groups: int = field(default=8, kw_only=True)
    activation: str = setting("gelu", among=ACTIVATIONS)

    def build(self, width: int) -> nn.Module:
        per_group = max(1, int(width * self.ratio) // self.groups)
        return GroupedConvLayers(width, per_group, self)


class GroupedConvLayers(nn.Module):
    def __init__(self, width: int, per_group: int, ffn: GroupedConvMlp) -> None:
        super().__init__()
        hidden = ffn.groups * per_group
        self.width, self.groups, self.per_group = width, ffn.groups, per_group
        self.grouped_up = nn.Linear(width, hidden, bias=False)
        self.grouped = nn.Conv2d(hidden, hidden, 3, padding=1, groups=ffn.groups, bias=False)
        self.grouped_down = nn.Linear(hidden, width, bias=False)
        self.act = ACTIVATIONS[ffn.activation]()

    def layouts(self) -> dict[str, Layout]:
        g, n = self.groups, self.per_group
        return {
            "grouped_up.weight": Layout((g, n, self.width)),
            "grouped.weight": Layout((g, n, n, 3, 3)),
            "grouped_down.weight": Layout((self.width, g, n)),
        }

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        y_BCHW = self.act(self.grouped_up(x_BHWC)).permute(0, 3, 1, 2)
        return self.grouped_down(self.act(self.grouped(y_BCHW)).permute(0, 2, 3, 1))
