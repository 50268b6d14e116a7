"""An MLP that looks at the neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers.activation import ACTIVATIONS
from nas.layers.choice import ChannelMixer
from nas.layers.ffns.mlp import hidden_units
from nas.layers.fields import gene, setting
from nas.layout import Layout


@dataclass(frozen=True)
class DepthwiseMlp(ChannelMixer):
    """An MLP with a depthwise convolution of its hidden units before the activation (SegFormer's Mix-FFN,
    Xie et al., 2021, eq. 3; PVT v2, Wang et al., 2022, §3.3).

    Attributes:
        relu_first: a ReLU before the convolution too (PVT v2 with linear spatial reduction).
    """

    ratio: float = gene(1, 2, 4)
    kernel: int = gene(3, 5, default=3, odd=True)
    activation: str = setting("gelu", among=ACTIVATIONS)
    relu_first: bool = field(default=False, kw_only=True)

    def build(self, width: int) -> nn.Module:
        return DepthwiseMlpLayers(width, hidden_units(width, self.ratio), self)


class DepthwiseMlpLayers(nn.Module):
    def __init__(self, width: int, hidden: int, ffn: DepthwiseMlp) -> None:
        super().__init__()
        self.relu_first = ffn.relu_first
        self.up = nn.Linear(width, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, ffn.kernel, padding=ffn.kernel // 2, groups=hidden)
        self.act = ACTIVATIONS[ffn.activation]()
        self.down = nn.Linear(hidden, width)

    def layouts(self) -> dict[str, Layout]:
        return {"depthwise.weight": Layout(tuple(self.depthwise.weight.shape), centred=(2, 3))}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        y = self.up(x_BHWC)
        y = F.relu(y) if self.relu_first else y
        y = self.depthwise(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.down(self.act(y))
