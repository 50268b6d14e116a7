"""No channel mixer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nas.layers.choice import ChannelMixer


@dataclass(frozen=True)
class NoFfn(ChannelMixer):
    """A block that mixes positions alone (Bermeitinger et al., 2024)."""

    takes_tokens = True
    has_weights = False

    def build(self, width: int) -> nn.Module:
        return nn.Identity()  # which a block leaves out, norm and all
