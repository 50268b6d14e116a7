"""Published backbones as points of the hierarchical space, each from its paper's table of variants.

A function gives the architecture; `from_pretrained` gives the module with a published checkpoint's weights.
`search_spaces/pretrained/NAME.py` says where the reference is and how its weights are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from inspect import signature
from pathlib import Path

from torch import Tensor, nn

from nas.errors import DataError
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
from nas.layers.attention import AttentionMixer, NoPosition
from nas.layers.choice import Norm
from nas.layers.downsampling.aggregation import BlockAggregation
from nas.layers.downsampling.convolution import ConvDownsample
from nas.layers.downsampling.depthwise_pooling import DepthwisePooling
from nas.layers.downsampling.query_pooling import QueryPooling
from nas.layers.ffns.depthwise import DepthwiseMlp
from nas.layers.ffns.grouped import GroupedConvMlp
from nas.layers.mixers.convolutional_projection import ConvProjection
from nas.layers.mixers.cross_shaped import CrossShaped
from nas.layers.mixers.depthwise import DepthwiseConv
from nas.layers.mixers.mask_unit import MaskUnit
from nas.layers.mixers.none import NoMixer
from nas.layers.mixers.pooled import Pooled
from nas.layers.mixers.pooling import Pooling
from nas.layers.mixers.spatial_reduction import LinearReduction, SpatialReduction
from nas.layers.mixers.spectral import Spectral
from nas.layers.norms import BatchNorm, NoNorm
from nas.layers.positions_in_attention.lepe import Lepe
from nas.layers.positions_in_attention.offset import OffsetBias
from nas.layers.stems.convolution import ConvPatchStem, ConvStem
from nas.layers.stems.overlap import OverlapStem
from nas.training import load_tensors
from search_spaces.hierarchical import ClassToken, Head, HierarchicalTransformer, Stage, build
from search_spaces.pretrained.translation import load, translated

CLASSIFIER = ("head.linear.", "head.others.")


def from_pretrained(
    name: str, path: str | Path, classes: int | None = None, side: int | None = None
) -> nn.Module:
    """The published model `name` with the weights of a safetensors file, in evaluation mode.

    Args:
        name: of a point below.
        path: of the file, under the names that the library of `search_spaces/pretrained/NAME.py` gives them.
        classes: of your task. Where the checkpoint has another number of them, its classifier is left out
            and a new one drawn; so it is where the checkpoint has none.
        side: of the images that the checkpoint is for, in pixels; default: 224. For models whose layout
            follows from it. Others have one layout, which takes the images that its windows or spans do.

    Example:
        >>> from_pretrained("swin_tiny", "swin-tiny-patch4-window7-224/model.safetensors")

    Raises:
        DataError: an unknown name, a file that is not there or holds pickles, or weights that are none of
            that model's.
        RunError: a damaged file.
    """
    if not isinstance(name, str) or name not in POINTS:
        raise DataError(f"A published model must be one of {', '.join(sorted(POINTS))}: got {name!r}.")
    model = import_module(f"search_spaces.pretrained.{name}")
    if not isinstance(path, (str, Path)):
        raise DataError(f"A checkpoint must be a .safetensors file: got {path!r}.")
    path = Path(path)
    if not path.is_file():
        raise DataError(f"A checkpoint must be a .safetensors file that exists: got {path}.")
    if path.suffix != ".safetensors":
        raise DataError(
            f"A checkpoint must be a .safetensors file: got {path}. Pickles (.bin, .pt, .pth), which can run "
            f"code, are not read: convert it where you trust it, with safetensors.torch.save_file."
        )
    if classes is not None and (type(classes) is not int or classes < 1):
        raise DataError(f"`classes` must be a whole number, 1 or more: got {classes!r}.")
    point = _laid_out(name, side)
    state, _ = load_tensors(path, "Download it again.")
    if not state:
        raise DataError(f"A checkpoint must hold tensors: {path} has none. Download it again.")
    weights = translated(state, model.at(side) if side and hasattr(model, "at") else model)
    head = {n: t for n, t in weights.items() if n.startswith(CLASSIFIER)}
    if not head and classes is None:
        raise DataError(
            f"{path} must hold a classifier, but has none, as backbones do not. Give `classes`, those of "
            f"your task, to draw a new one."
        )
    if not head:
        return _with_new_classifier(weights, point, classes or point.classes)
    point = replace(point, classes=_classes(weights, point.classes))
    module = load(build(point), weights).eval()
    return module if classes in (None, point.classes) else _with_new_classifier(weights, point, classes)


def _laid_out(name: str, side: int | None) -> HierarchicalTransformer:
    """The point, for images of that side."""
    if side is None:
        return POINTS[name]()
    by_side = "side" in signature(POINTS[name]).parameters
    if not by_side and not hasattr(import_module(f"search_spaces.pretrained.{name}"), "at"):
        raise DataError(
            f"`side` must be left out for {name}, which has one layout, whatever the images that its windows "
            f"or spans take: got {side!r}."
        )
    if type(side) is not int or side < 32 or side % 32:
        raise DataError(f"`side` must be a multiple of 32: got {side!r}.")
    return POINTS[name](side=side) if by_side else POINTS[name]()


def _classes(weights: Mapping[str, Tensor], default: int) -> int:
    """As many as the classifier has; where its bias is missing, `load` says so."""
    bias = weights.get("head.linear.bias")
    if bias is None:
        return default
    if bias.ndim != 1 or not len(bias):
        raise DataError(
            f"The classifier of a checkpoint must have a bias per class: got one of shape "
            f"{tuple(bias.shape)}. Is it damaged?"
        )
    return len(bias)


def _with_new_classifier(
    weights: Mapping[str, Tensor], point: HierarchicalTransformer, classes: int
) -> nn.Module:
    """The same but for the layers behind all else."""
    new = build(replace(point, classes=classes))
    kept = {n: t for n, t in weights.items() if not n.startswith(CLASSIFIER)}
    drawn = {n: t for n, t in new.state_dict().items() if n.startswith(CLASSIFIER)}
    return load(new, kept | drawn).eval()


def convnext_tiny(classes: int = 1000) -> HierarchicalTransformer:
    """ConvNeXt-T (Liu et al., 2022, Table 9)."""
    norm = LayerNorm(1e-6)
    block = Block(DepthwiseConv(7), Mlp(4), norm, topology="joint", layer_scale=1e-6)

    def stage(width: int, depth: int) -> Stage:
        down = ConvDownsample(2, norm=norm, norm_first=True) if width > 96 else None
        return Stage(width, (block,) * depth, down, NoPositionEncoding())

    return HierarchicalTransformer(
        PatchStem(4, norm=norm),
        (stage(96, 3), stage(192, 3), stage(384, 9), stage(768, 3)),
        classes,
        channels=3,
        head=Head(norm=norm, norm_first=False),
    )


def cswin_tiny(classes: int = 1000) -> HierarchicalTransformer:
    """CSWin-T (Dong et al., 2022, Table 1)."""

    def stage(width: int, depth: int, mixer: AttentionMixer) -> Stage:
        down = ConvDownsample(3) if width > 64 else None
        return Stage(width, (Block(mixer, Mlp(4)),) * depth, down, NoPositionEncoding())

    def cross(heads: int, stripe: int) -> CrossShaped:
        return CrossShaped(heads=heads, head_dim=32, stripe=stripe)

    return HierarchicalTransformer(
        OverlapStem(4, kernel=7, padding=2),
        (
            stage(64, 1, cross(2, 1)),
            stage(128, 2, cross(4, 2)),
            stage(256, 21, cross(8, 7)),
            stage(512, 1, Global(heads=16, head_dim=32, position=Lepe())),
        ),
        classes,
        channels=3,
    )


def cvt_13(classes: int = 1000) -> HierarchicalTransformer:
    """CvT-13 (Wu et al., 2021, Table 2): a class token in the last stage."""

    def stage(width: int, depth: int, token: ClassToken | None = None) -> Stage:
        mixer = ConvProjection(heads=width // 64, head_dim=64, kv_stride=2)
        down = ConvDownsample(3) if width > 64 else None
        return Stage(width, (Block(mixer, Mlp(4)),) * depth, down, NoPositionEncoding(), token)

    return HierarchicalTransformer(
        OverlapStem(4, kernel=7, padding=2),
        (stage(64, 1), stage(192, 2), stage(384, 10, ClassToken())),
        classes,
        channels=3,
        head=Head(pool="token"),
    )


def efficientformer_l1(classes: int = 1000) -> HierarchicalTransformer:
    """EfficientFormer-L1 (Li et al., 2022, Table 6): pooling, and one block of attention at the end."""
    pool = Block(Pooling(3), Mlp(4, norm=BatchNorm()), NoNorm(), layer_scale=1e-5)
    attention = Global(heads=8, head_dim=32, value_dim=128, position=OffsetBias(7))
    attend = Block(attention, Mlp(4), LayerNorm(1e-6), layer_scale=1e-5)

    def stage(width: int, blocks: tuple[Block, ...]) -> Stage:
        down = ConvDownsample(3, norm=BatchNorm()) if width > 48 else None
        return Stage(width, blocks, down, NoPositionEncoding())

    return HierarchicalTransformer(
        ConvStem(2),
        (
            stage(48, (pool,) * 3),
            stage(96, (pool,) * 2),
            stage(224, (pool,) * 6),
            stage(448, (pool,) * 3 + (attend,)),
        ),
        classes,
        channels=3,
        head=Head(norm=LayerNorm(1e-6), classifiers=2),
    )


def hiera_tiny(classes: int = 1000, side: int = 224) -> HierarchicalTransformer:
    """Hiera-T (Ryali et al., 2023, Table 8): mask units early, attention to all late, queries pooled between.

    The block that pools still attends as the stage before it.
    """
    norm = LayerNorm(1e-6)

    def stage(width: int, first: AttentionMixer, mixer: AttentionMixer, depth: int) -> Stage:
        blocks = tuple(Block(m, Mlp(4), norm) for m in (first, *[mixer] * (depth - 1)))
        position = NoPositionEncoding() if width > 96 else AbsolutePosition(side // 4)
        return Stage(width, blocks, QueryPooling() if width > 96 else None, position)

    def units(heads: int, size: int) -> MaskUnit:
        return MaskUnit(heads=heads, head_dim=96, size=size)

    def everywhere(heads: int) -> Global:
        return Global(heads=heads, head_dim=96)

    return HierarchicalTransformer(
        OverlapStem(4, kernel=7, norm=None),
        (
            stage(96, units(1, 8), units(1, 8), 1),
            stage(192, units(2, 4), units(2, 4), 2),
            stage(384, units(4, 2), everywhere(4), 7),
            stage(768, everywhere(8), everywhere(8), 2),
        ),
        classes,
        channels=3,
        head=Head(norm=norm, norm_first=False),
    )


def mit_b0(classes: int = 1000) -> HierarchicalTransformer:
    """SegFormer's encoder MiT-B0 (Xie et al., 2021, Table 6), with a mean and a classifier."""
    return _pyramid(
        (32, 64, 160, 256), (2, 2, 2, 2), (1, 2, 5, 8), (4, 4, 4, 4), classes, LayerNorm(), linear=False
    )


def mvitv2_tiny(classes: int = 1000) -> HierarchicalTransformer:
    """MViTv2-T (Li et al., 2022, Table 9)."""
    norm = LayerNorm(1e-6)

    def stage(i: int, depth: int) -> Stage:
        heads, kv_stride = 2**i, max(1, 4 // 2**i)

        def block(queries: int, keys: int) -> Block:
            mixer = Pooled(heads=heads, head_dim=96, kv_stride=kv_stride, span=max(queries, keys), norm=norm)
            return Block(mixer, Mlp(4), norm)

        side = 56 // 2**i
        first = block(side, 2 * side // kv_stride) if i else block(side, side // kv_stride)
        rest = block(side, side // kv_stride)
        down = QueryPooling(3) if i else None
        return Stage(96 * 2**i, (first, *[rest] * (depth - 1)), down, NoPositionEncoding())

    return HierarchicalTransformer(
        OverlapStem(4, kernel=7, norm=None),
        (stage(0, 1), stage(1, 2), stage(2, 5), stage(3, 2)),
        classes,
        channels=3,
        head=Head(norm=norm),
    )


def nest_tiny(classes: int = 1000, side: int = 224) -> HierarchicalTransformer:
    """NesT-T (Zhang et al., 2022, Table A1)."""
    norm = LayerNorm(1e-6)

    def stage(width: int, depth: int, patch: int) -> Stage:
        mixer = Window(heads=width // 32, size=side // 16, head_dim=32, position=NoPosition())
        down = BlockAggregation(norm=norm) if width > 96 else None
        return Stage(width, (Block(mixer, Mlp(4), norm),) * depth, down, AbsolutePosition(side // patch))

    return HierarchicalTransformer(
        PatchStem(4),
        (stage(96, 2, 4), stage(192, 2, 8), stage(384, 8, 16)),
        classes,
        channels=3,
        head=Head(norm=norm),
    )


def pit_small(classes: int = 1000, side: int = 224) -> HierarchicalTransformer:
    """PiT-S (Heo et al., 2021, Table 1)."""
    norm = LayerNorm(1e-6)

    def stage(heads: int, depth: int) -> Stage:
        blocks = (Block(Global(heads=heads, head_dim=48), Mlp(4), norm),) * depth
        if heads == 3:
            return Stage(48 * heads, blocks, None, AbsolutePosition((side - 16) // 8 + 1), ClassToken())
        return Stage(48 * heads, blocks, DepthwisePooling(tokens=True), NoPositionEncoding())

    return HierarchicalTransformer(
        OverlapStem(8, kernel=16, padding=0, norm=None),
        (stage(3, 2), stage(6, 6), stage(12, 4)),
        classes,
        channels=3,
        head=Head("token", norm),
    )


def pvt_v2_b2(classes: int = 1000) -> HierarchicalTransformer:
    """PVT v2-B2 (Wang et al., 2022, Table 1)."""
    return _pyramid(
        (64, 128, 320, 512), (3, 4, 6, 3), (1, 2, 5, 8), (8, 8, 4, 4), classes, LayerNorm(1e-6), linear=False
    )


def pvt_v2_b2_li(classes: int = 1000) -> HierarchicalTransformer:
    """PVT v2-B2-Li, with linear spatial reduction."""
    return _pyramid(
        (64, 128, 320, 512), (3, 4, 6, 3), (1, 2, 5, 8), (8, 8, 4, 4), classes, LayerNorm(1e-6), linear=True
    )


def _pyramid(
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    heads: tuple[int, ...],
    ratios: tuple[int, ...],
    classes: int,
    norm: Norm,
    linear: bool,
) -> HierarchicalTransformer:
    """PVT v2 and SegFormer: keys and values of an ever larger part of an ever smaller map."""

    def mixer(i: int) -> AttentionMixer:
        head_dim = widths[i] // heads[i]
        if linear:
            return LinearReduction(heads=heads[i], head_dim=head_dim, pool=7)
        return SpatialReduction(heads=heads[i], head_dim=head_dim, ratio=8 // 2**i)

    stages = tuple(
        Stage(
            width,
            (Block(mixer(i), DepthwiseMlp(ratios[i], relu_first=linear), norm),) * depths[i],
            ConvDownsample(3) if i else None,
            NoPositionEncoding(),
            norm=norm,
        )
        for i, width in enumerate(widths)
    )
    stem = OverlapStem(4, kernel=7)
    return HierarchicalTransformer(stem, stages, classes, channels=3, head=Head(norm=None))


def spectformer_small(classes: int = 1000, side: int = 224) -> HierarchicalTransformer:
    """SpectFormer-S, the one of a single scale (Patro et al., 2023, §3.2): filters first, attention after."""
    norm = LayerNorm(1e-6)
    filters = (Block(Spectral(side // 16), Mlp(4), norm, topology="chain"),) * 4
    attention = (Block(Global(heads=6, head_dim=64), Mlp(4), norm),) * 15
    stage = Stage(384, filters + attention, position=AbsolutePosition(side // 16))
    return HierarchicalTransformer(PatchStem(16), (stage,), classes, channels=3, head=Head(norm=norm))


def swin_tiny(classes: int = 1000) -> HierarchicalTransformer:
    """Swin-T (Liu et al., 2021, Table 7)."""

    def stage(width: int, depth: int, heads: int) -> Stage:
        blocks = tuple(
            Block(Window(heads=heads, size=7, shift=bool(i % 2), head_dim=32), Mlp(4)) for i in range(depth)
        )
        down = PatchMerging(bias=False) if width > 96 else None
        return Stage(width, blocks, down, NoPositionEncoding())

    return HierarchicalTransformer(
        PatchStem(4, norm=LayerNorm()),
        (stage(96, 2, 3), stage(192, 2, 6), stage(384, 6, 12), stage(768, 2, 24)),
        classes,
        channels=3,
    )


def vit_small(classes: int = 1000) -> HierarchicalTransformer:
    """ViT-S/16 (Dosovitskiy et al., 2021, in the size of DeiT-S, Touvron et al., 2021): a single scale."""
    norm = LayerNorm(1e-6)
    blocks = (Block(Global(heads=6, head_dim=64), Mlp(4), norm),) * 12
    stage = Stage(384, blocks, None, AbsolutePosition(14, antialias=True), ClassToken(position=True))
    return HierarchicalTransformer(PatchStem(16), (stage,), classes, channels=3, head=Head("token", norm))


def visformer_small(classes: int = 1000, side: int = 224) -> HierarchicalTransformer:
    """Visformer-S (Chen et al., 2021, Table 4): convolutions in the first stage, attention after."""
    norm = BatchNorm()
    convolve = Block(NoMixer(), GroupedConvMlp(2), norm)

    def attend(head_dim: int) -> Block:
        mixer = Global(heads=6, head_dim=head_dim, qkv_bias=False, out_bias=False)
        return Block(mixer, Mlp(4, bias=False), norm)

    down = ConvDownsample(2, norm=norm)
    return HierarchicalTransformer(
        ConvPatchStem(4, features=32),
        (
            Stage(192, (convolve,) * 7, position=AbsolutePosition(side // 8)),
            Stage(384, (attend(64),) * 4, down, AbsolutePosition(side // 16)),
            Stage(768, (attend(128),) * 4, down, AbsolutePosition(side // 32)),
        ),
        classes,
        channels=3,
        head=Head(norm=norm),
    )


POINTS: dict[str, Callable[..., HierarchicalTransformer]] = {
    point.__name__: point
    for point in (
        convnext_tiny,
        cswin_tiny,
        cvt_13,
        efficientformer_l1,
        hiera_tiny,
        mit_b0,
        mvitv2_tiny,
        nest_tiny,
        pit_small,
        pvt_v2_b2,
        pvt_v2_b2_li,
        spectformer_small,
        swin_tiny,
        visformer_small,
        vit_small,
    )
}
