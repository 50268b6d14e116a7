"""Published models in small, and those of a library, for checkpoints of a few kilobytes."""

from __future__ import annotations

from torch import nn

from nas.layers import (
    AbsolutePosition,
    Block,
    Global,
    LayerNorm,
    Mlp,
    NoPositionEncoding,
    PatchMerging,
    PatchStem,
    Window,
)
from nas.layers.downsampling.convolution import ConvDownsample
from nas.layers.ffns.depthwise import DepthwiseMlp
from nas.layers.mixers.cross_shaped import CrossShaped
from nas.layers.mixers.depthwise import DepthwiseConv
from nas.layers.mixers.pooling import Pooling
from nas.layers.mixers.spatial_reduction import SpatialReduction
from nas.layers.norms import BatchNorm, NoNorm
from nas.layers.stems.overlap import OverlapStem
from search_spaces.hierarchical import ClassToken, Head, HierarchicalTransformer, Stage

SIDE, CLASSES = 56, 5
HIDDEN, DEPTHS, HEADS = (8, 16, 24, 32), (1, 2, 1, 1), (1, 2, 3, 4)


def swin(classes: int = 1000) -> HierarchicalTransformer:
    """Of two stages, on 14 × 14 and then 7 × 7."""

    def stage(width: int, depth: int, heads: int) -> Stage:
        blocks = tuple(Block(Window(heads, 7, shift=bool(i % 2)), Mlp(4)) for i in range(depth))
        return Stage(width, blocks, PatchMerging(bias=False) if heads > 1 else None, NoPositionEncoding())

    return HierarchicalTransformer(
        PatchStem(4, norm=LayerNorm()), (stage(8, 2, 1), stage(16, 1, 2)), classes, channels=3
    )


def their_swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    return SwinForImageClassification(
        SwinConfig(embed_dim=8, depths=[2, 1], num_heads=[1, 2], image_size=SIDE, num_labels=CLASSES)
    )


def mit(classes: int = 1000) -> HierarchicalTransformer:
    def stage(i: int) -> Stage:
        mixer = SpatialReduction(heads=HEADS[i], head_dim=8, ratio=8 // 2**i)
        blocks = (Block(mixer, DepthwiseMlp(2), LayerNorm()),) * DEPTHS[i]
        down = ConvDownsample(3) if i else None
        return Stage(HIDDEN[i], blocks, down, NoPositionEncoding(), norm=LayerNorm())

    return HierarchicalTransformer(
        OverlapStem(4, kernel=7), tuple(map(stage, range(4))), classes, channels=3, head=Head(norm=None)
    )


def their_mit() -> nn.Module:
    from transformers import SegformerConfig, SegformerForImageClassification

    return SegformerForImageClassification(
        SegformerConfig(
            hidden_sizes=list(HIDDEN),
            depths=list(DEPTHS),
            num_attention_heads=list(HEADS),
            mlp_ratios=[2] * 4,
            num_labels=CLASSES,
        )
    )


def convnext(classes: int = CLASSES) -> HierarchicalTransformer:
    norm = LayerNorm(1e-6)
    block = Block(DepthwiseConv(7), Mlp(4), norm, topology="joint", layer_scale=1e-6)
    down = ConvDownsample(2, norm=norm, norm_first=True)
    stages = (
        Stage(16, (block,) * 2, None, NoPositionEncoding()),
        Stage(32, (block,) * 2, down, NoPositionEncoding()),
    )
    head = Head(norm=norm, norm_first=False)
    return HierarchicalTransformer(PatchStem(4, norm=norm), stages, classes, channels=3, head=head)


def vit(classes: int = CLASSES) -> HierarchicalTransformer:
    norm = LayerNorm(1e-6)
    blocks = (Block(Global(heads=4, head_dim=8), Mlp(4), norm),) * 4
    stage = Stage(32, blocks, None, AbsolutePosition(7, antialias=True), ClassToken(position=True))
    return HierarchicalTransformer(PatchStem(8), (stage,), classes, channels=3, head=Head("token", norm))


def cswin(classes: int = CLASSES) -> HierarchicalTransformer:
    blocks = (Block(CrossShaped(heads=4, head_dim=8, stripe=2), Mlp(4)),) * 2
    stage = Stage(32, blocks, None, NoPositionEncoding())
    return HierarchicalTransformer(OverlapStem(4, kernel=7, padding=2), (stage,), classes, channels=3)


def efficientformer(classes: int = CLASSES) -> HierarchicalTransformer:
    """With batch norms, and attention after pooling."""
    pool = Block(Pooling(3), Mlp(4, norm=BatchNorm()), NoNorm(), layer_scale=1e-5)
    attend = Block(Global(heads=2, head_dim=8, value_dim=16), Mlp(4), layer_scale=1e-5)
    stage = Stage(16, (pool, pool, attend), None, NoPositionEncoding())
    return HierarchicalTransformer(
        PatchStem(4, norm=BatchNorm()), (stage,), classes, channels=3, head=Head(classifiers=2)
    )
