"""Positions left to the rest of the network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nas.layers.choice import Position


@dataclass(frozen=True)
class NoPositionEncoding(Position):
    """Nothing is added: convolutions or attention tell positions apart, or nothing does."""

    def build(self, width: int) -> nn.Module:
        return nn.Identity()
