"""No mixing of positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nas.layers.choice import Mixer


@dataclass(frozen=True)
class NoMixer(Mixer):
    """Positions do not see one another; the block has a channel mixer alone (LIT, Pan et al., 2022)."""

    takes_tokens = True
    has_weights = False

    def build(self, width: int) -> nn.Module:
        return Untouched()  # which a block in series leaves out, norm and all


class Untouched(nn.Identity):
    """Gives a map, and what is beside it, as it comes."""

    takes_tokens = True
    pointwise = True
