"""Small spaces that together hold every choice that `nas.layers` has, in every arrangement of a block."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace

from nas.layers import (
    AttentionPosition,
    BatchNorm,
    Bits,
    Block,
    ChannelMixer,
    Downsample,
    Global,
    LayerNorm,
    Mixer,
    Mlp,
    NoFfn,
    OverlapStem,
    PatchMerging,
    PatchStem,
    Position,
    PositionedAttention,
    RepBN,
    RMSNorm,
    Stem,
    Window,
    genes_of,
)
from nas.layers.catalogue import members
from nas.layers.downsampling.depthwise_pooling import DepthwisePooling
from nas.layers.downsampling.query_pooling import QueryPooling
from nas.layers.ffns.gated import Gated
from nas.layers.mixers.convolutional_projection import ConvProjection
from nas.layers.mixers.depthwise import DepthwiseConv
from nas.layers.mixers.mask_unit import MaskUnit
from nas.layers.mixers.pooled import Pooled
from nas.layers.mixers.pooling import Pooling
from nas.layers.norms import NoNorm
from nas.layers.positions_in_attention.offset import OffsetBias
from nas.layers.stems.convolution import ConvPatchStem
from nas.space import Space, oneof, repeat
from search_spaces.hierarchical import (
    ClassToken,
    Head,
    HierarchicalTransformer,
    Stage,
    laws,
    with_holes,
)

SIDE = 16
BITS = Bits(oneof(4, 8, 32), oneof(8, 32))


def every_mixer(side: int = SIDE) -> Space:
    """All mixers and channel mixers."""
    mixers = [replace(with_holes(mixer), bits=BITS) for mixer in members(Mixer)]
    ffns = [replace(with_holes(ffn), bits=BITS) for ffn in members(ChannelMixer)]
    blocks = repeat(Block(oneof(*mixers), oneof(*ffns)), 1, 2)
    stages = Stage(oneof(16, 32), blocks), Stage(oneof(32, 40), blocks, PatchMerging())
    return Space(HierarchicalTransformer(OverlapStem(2), stages, 5, 3), laws(side))


def every_entry(side: int = SIDE) -> Space:
    """All stems, downsamplings and positions on the map."""
    stems = [with_holes(stem, **patches(stem)) for stem in members(Stem)]
    downs = [with_holes(down) for down in members(Downsample)]
    position = oneof(*(with_holes(position) for position in members(Position)))
    mixers = MaskUnit(2, oneof(2, 4)), Pooled(2, oneof(1, 2), span=oneof(4, 8)), Pooling(3)
    blocks = repeat(Block(oneof(*mixers), Mlp(1, bits=BITS)), 1, 2)
    stages = (
        Stage(16, blocks, position=position),
        Stage(oneof(16, 32, 40), blocks, oneof(*downs), position),
    )
    return Space(HierarchicalTransformer(oneof(*stems), stages, 5, 3), laws(side))


def patches(stem: type[Stem]) -> dict[str, object]:
    """Those that leave a map of no more than 8 × 8 positions."""
    return {"patch": oneof(2, 4)} if "patch" in genes_of(stem) and stem is not ConvPatchStem else {}


def every_arrangement(side: int = SIDE) -> Space:
    """All norms, placements and topologies of a block; norms after stages; one stage that does not halve."""
    norm = oneof(LayerNorm(), RMSNorm(), BatchNorm(), RepBN(), NoNorm())
    qk_norm = oneof(None, LayerNorm())
    block = Block(
        mixer=oneof(
            Global(oneof(1, 2), qk_norm=qk_norm, bits=BITS),
            Window(2, oneof(2, 4), value_dim=16, bits=BITS),
            DepthwiseConv(3, bits=BITS),
        ),
        ffn=oneof(Mlp(oneof(1, 2), bits=BITS), Gated(1, bits=BITS), NoFfn()),
        norm=norm,
        placement=oneof("pre", "post", "sub"),
        topology=oneof("series", "parallel", "joint", "chain"),
        layer_scale=oneof(None, 1e-2),
        mixer2=oneof(None, Global(2)),
        ffn2=oneof(None, Mlp(1)),
    )
    after = oneof(None, LayerNorm())
    stages = (
        Stage(oneof(16, 24), repeat(block, 1, 2), norm=after),
        Stage(oneof(16, 24), repeat(block, 0, 1), oneof(None, PatchMerging()), norm=after),
        Stage(32, (block,), PatchMerging(), norm=after),
    )
    return Space(HierarchicalTransformer(OverlapStem(2), stages, 5, 3), laws(side))


def every_token(side: int = SIDE, *, early: bool = True) -> Space:
    """A class token that joins the map at the first stage or at the second, with a position or not."""
    token = oneof(None, ClassToken(oneof(False, True)))
    mixer = oneof(Global(oneof(1, 2), bits=BITS), ConvProjection(2, oneof(1, 2)))
    block = Block(mixer, Mlp(oneof(1, 2)), placement=oneof("pre", "post"), norm=oneof(LayerNorm(), RMSNorm()))
    down, norm = DepthwisePooling(tokens=early), oneof(None, RMSNorm())
    stages = (
        Stage(16, repeat(block, 1, 2), token=token if early else None, norm=norm),
        Stage(oneof(16, 32), repeat(block, 1, 2), down, token=None if early else token, norm=norm),
    )
    head = Head(pool=oneof("token", "mean"))  # the former is refused without a token
    return Space(HierarchicalTransformer(PatchStem(oneof(2, 4)), stages, 5, 3, head), laws(side))


def every_position(side: int = SIDE) -> Space:
    """All positions inside attention, in all attention that takes one; class tokens; pooled queries."""
    others = [with_holes(p) for p in members(AttentionPosition) if p is not OffsetBias]
    positions = oneof(*others, OffsetBias(oneof(4, 8)))
    dims = oneof(7, 8)  # an odd one has no pairs to turn
    mixers = [
        replace(largest(mixer), heads=2, head_dim=dims, position=positions)
        for mixer in members(Mixer)
        if issubclass(mixer, PositionedAttention)
    ]
    blocks = repeat(Block(oneof(*mixers, Pooled(2, 2, span=oneof(4, 8, 16))), Mlp(1)), 1, 2)
    token = oneof(None, ClassToken())
    down = oneof(PatchMerging(), QueryPooling(), DepthwisePooling(tokens=True))
    stages = Stage(16, blocks, token=token), Stage(oneof(16, 32), blocks, down, token=token)
    return Space(HierarchicalTransformer(PatchStem(2), stages, 5, 3), laws(side))


def largest(choice: type[Mixer]) -> Mixer:
    """An example with all genes but `heads` that have no default at their largest value."""
    required = {f.name for f in fields(choice) if f.default is MISSING}
    return choice(**{name: values[-1] for name, values in genes_of(choice).items() if name in required})
