"""Plain modules of which hierarchical transformers are made, and the dataclasses that choose among them.

None of the modules knows that it may be cut. `docs/choices.md` lists what there is.
"""

from nas.layers.attention import (
    Attention,
    AttentionMixer,
    AttentionPosition,
    NoPosition,
    PositionedAttention,
    PositionInAttention,
    RelativeBias,
)
from nas.layers.block import Block
from nas.layers.choice import (
    Bits,
    ChannelMixer,
    Choice,
    Downsample,
    Mixer,
    Norm,
    Parts,
    Position,
    Stem,
)
from nas.layers.downsampling.merging import PatchMerging
from nas.layers.ffns.mlp import Mlp
from nas.layers.ffns.none import NoFfn
from nas.layers.fields import Checked, gene, genes_of, possible, setting
from nas.layers.mixers.everywhere import Global
from nas.layers.mixers.none import NoMixer
from nas.layers.mixers.window import Window
from nas.layers.norms import BatchNorm, LayerNorm, RepBN, RMSNorm
from nas.layers.positions.absolute import AbsolutePosition
from nas.layers.positions.conditional import ConditionalPosition
from nas.layers.positions.none import NoPositionEncoding
from nas.layers.stems.overlap import OverlapStem
from nas.layers.stems.patch import PatchStem

__all__ = [
    "AbsolutePosition",
    "Attention",
    "AttentionMixer",
    "AttentionPosition",
    "BatchNorm",
    "Bits",
    "Block",
    "ChannelMixer",
    "Checked",
    "Choice",
    "ConditionalPosition",
    "Downsample",
    "Global",
    "LayerNorm",
    "Mixer",
    "Mlp",
    "NoFfn",
    "NoMixer",
    "NoPosition",
    "NoPositionEncoding",
    "Norm",
    "OverlapStem",
    "Parts",
    "PatchMerging",
    "PatchStem",
    "Position",
    "PositionInAttention",
    "PositionedAttention",
    "RMSNorm",
    "RelativeBias",
    "RepBN",
    "Stem",
    "Window",
    "gene",
    "genes_of",
    "possible",
    "setting",
]
