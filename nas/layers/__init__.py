"""Plain modules of which hierarchical transformers are made. None of them knows that it may be cut."""

from nas.layers.attention import Attention, GlobalAttention, WindowAttention
from nas.layers.block import Block
from nas.layers.embedding import ConditionalPosition, OverlapStem, PatchMerging
from nas.layers.ffn import Mlp

__all__ = [
    "Attention",
    "Block",
    "ConditionalPosition",
    "GlobalAttention",
    "Mlp",
    "OverlapStem",
    "PatchMerging",
    "WindowAttention",
]
