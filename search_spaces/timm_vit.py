"""timm's ViT as a supernet: depth, heads and FFN units per block. Its q, k and v are one fused parameter.

A search space on a model that knows nothing of this package; docs/bring-your-own-model.md explains it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nas.layout import Layout
from nas.space import Space, oneof, repeat
from search_spaces.pretrained.libraries import prepare

prepare()
from timm.layers import Attention, Mlp
from timm.models import VisionTransformer


@dataclass(frozen=True)
class Block:
    heads: int
    hidden: int


@dataclass(frozen=True)
class ViT:
    blocks: tuple[Block, ...]
    width: int = 64
    head_dim: int = 16
    image: int = 32
    patch: int = 8
    classes: int = 10


def space() -> Space:
    return Space(ViT(repeat(Block(oneof(1, 2, 3, 4), oneof(64, 128, 256)), 2, 4)))


def build(architecture: ViT) -> nn.Module:
    """The stock model, (B, 3, side, side) to (B, classes), with attention and MLP of the sizes asked for."""
    a = architecture
    model = VisionTransformer(
        a.image, a.patch, 3, a.classes, embed_dim=a.width, depth=len(a.blocks), num_heads=1
    )
    for module, block in zip(model.blocks, a.blocks, strict=True):
        module.attn = Attention(a.width, block.heads, attn_head_dim=a.head_dim, qkv_bias=True)
        module.mlp = Mlp(a.width, block.hidden)
    return model


def layouts(architecture: ViT) -> dict[str, Layout]:
    """Of the fused projection, and of the one behind it: heads are an axis in both."""
    width, found = architecture.width, {}
    for i, block in enumerate(architecture.blocks):
        heads = (block.heads, architecture.head_dim)
        found[f"blocks.{i}.attn.qkv.weight"] = Layout((3, *heads, width))
        found[f"blocks.{i}.attn.qkv.bias"] = Layout((3, *heads))
        found[f"blocks.{i}.attn.proj.weight"] = Layout((width, *heads))
    return found
