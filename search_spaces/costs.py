"""What hierarchical transformers cost, from matrices of genes, without building one whole model.

An architecture falls into pieces: the stem, the entry of each stage, its blocks, the norm after them, the
head. Where a block works in series, its two halves are pieces of their own. A piece is built without weights
and traced once; the sums over pieces are table look-up (`nas.space.Additive`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.devices.costs import FEATURES, count, macs
from nas.devices.memory import memory
from nas.errors import SpaceError
from nas.layers import Bits, Block, ChannelMixer, Mixer, NoFfn, NoMixer, Norm, Stem
from nas.layers.block import each
from nas.layers.choice import Parts
from nas.layers.downsampling.query_pooling import QueryPooling
from nas.quantize import FULL, Quantization, at_bits, bits_by_path, of_parameter, payload_bytes
from nas.space import Additive, Context, Space, materialise
from search_spaces.hierarchical import (
    HeadModule,
    HierarchicalTransformer,
    Stage,
    StageModule,
    build_block,
)
from search_spaces.laws import map_side

FIGURES = ("parameters", "mmacs", "activation_bytes", "peak_bytes", "size_bytes")
"""Columns of `figures`: weights; 10^6 multiply-accumulates; bytes of all outputs of kernels and the most that
is needed at one time (32 bits, one image); bytes of the weights packed at their bits, scales included."""

BITS = frozenset({"bits"})  # they change neither what is computed nor its shapes
PEAK = FIGURES.index("peak_bytes")


def features(space: Space, image_side: int, quantization: Quantization = Quantization()) -> Additive:
    """Operation counts (n, `nas.devices.FEATURES`) of one image of that side, from genes (n, genes).

    Args:
        quantization: that of the experiment, by which bits have their kernels.
    """
    return _summed(space, image_side, partial(_features, quantization), len(FEATURES))


def figures(space: Space, image_side: int, quantization: Quantization = Quantization()) -> Additive:
    """Analytic figures (n, `FIGURES`) of one image of that side, from genes (n, genes).

    They are those of the whole module, but for activations, since pieces get their inputs in order: beside a
    class token, where the whole copies slices, those differ by up to 10 % (and the peak by one token); where
    a map is handed on as a permuted view (as convolutions without a norm after them do: `PatchStem`,
    `ConvStem`, `CrossScaleDownsample`; then another norm than LayerNorm) by up to 25 %. Work on a class token
    that nothing of the image has reached yet (`NoMixer` before the first attention) is counted here and not
    in the whole module, where it is a constant.

    Example:
        >>> table = figures(space, 32)(genes)
        >>> small = genes[table[:, FIGURES.index("mmacs")] < 2]
    """
    return _summed(space, image_side, partial(_figures, quantization.nested), len(FIGURES), maxima=(PEAK,))


# --- pieces -------------------------------------------------------------------------------------

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Piece:
    """A module, `make(*arguments)`, and the shapes of what flows into it."""

    make: Callable[..., nn.Module]
    arguments: tuple[Any, ...]
    inputs: Shapes

    def build(self) -> nn.Module:
        """Without weights."""
        with torch.device("meta"):
            return self.make(*self.arguments)

    def examples(self) -> list[torch.Tensor]:
        return [torch.empty(shape, device="meta") for shape in self.inputs]


Found = Iterator[tuple[Piece, Any]]  # with the part whose `bits` hold for it, read where they are asked for


def of_ends(architecture: HierarchicalTransformer, _: Context, image_side: int) -> Found:
    """Stem and head."""
    stages = architecture.stages
    side = architecture.stem.after(image_side)
    for stage in stages:
        side = side if stage.down is None else stage.down.after(side)
    image = (1, architecture.channels, image_side, image_side)
    stem, head = (materialise(part, omit=BITS) for part in (architecture.stem, architecture.head))
    yield Piece(_stem, (stem, architecture.channels, stages[0].width), (image,)), architecture.stem
    tokens = sum(stage.token is not None for stage in stages)
    inputs = _parts(side, stages[-1].width, tokens)
    yield Piece(HeadModule, (stages[-1].width, architecture.classes, head), inputs), architecture.head


def of_stage(stage: Stage, at: Context, image_side: int) -> Found:
    """What comes before the blocks (downsampling, position, token), and the norm after them."""
    i, side = at.index("stages"), map_side(image_side, at, before=True)
    previous = at.root.stages[i - 1].width if i else None
    before, width = _tokens(at, before=True), previous or stage.width
    down = materialise(stage.down, omit=BITS)
    if isinstance(down, QueryPooling) and i:  # the first block does it
        side, width, previous, down = down.after(side), stage.width, stage.width, None
    empty = Stage(stage.width, (), down, materialise(stage.position), materialise(stage.token))
    yield Piece(StageModule, (previous, empty), _parts(side, width, before)), stage
    if stage.norm is not None:
        inputs = _parts(map_side(image_side, at), stage.width, _tokens(at))
        yield Piece(_Each, (materialise(stage.norm), stage.width), inputs), stage


def of_mixer(mixer: Mixer, at: Context, image_side: int) -> Found:
    """The first half of a block in series; behind query pooling it sees the larger map."""
    block = at.parent
    if not at.path.endswith(".mixer") or block.topology != "series":
        return
    half, stage, i = _half(block, ffn=NoFfn(), ffn2=None), at.ancestors[-2], at.index("stages")
    if at.index("blocks") == 0 and i and isinstance(stage.down, QueryPooling):
        previous, side = at.root.stages[i - 1].width, map_side(image_side, at, before=True)
        arguments = half, stage.width, previous, materialise(stage.down)
        yield Piece(build_block, arguments, _parts(side, previous, 0)), block
    else:
        yield Piece(build_block, (half, stage.width, None, None), _inside(at, image_side)), block


def of_ffn(ffn: ChannelMixer, at: Context, image_side: int) -> Found:
    """The second half of a block in series."""
    block = at.parent
    if at.path.endswith(".ffn") and block.topology == "series":
        half = _half(block, mixer=NoMixer(), mixer2=None)
        arguments = half, at.ancestors[-2].width, None, None
        yield Piece(build_block, arguments, _inside(at, image_side)), block


def of_block(block: Block, at: Context, image_side: int) -> Found:
    """A block whose halves do not come one after the other."""
    if block.topology != "series":
        arguments = materialise(block, omit=BITS), at.parent.width, None, None
        yield Piece(build_block, arguments, _inside(at, image_side)), block


PIECES: dict[type, Callable[[Any, Context, int], Found]] = {
    HierarchicalTransformer: of_ends,
    Stage: of_stage,
    Block: of_block,
    Mixer: of_mixer,
    ChannelMixer: of_ffn,
}


def _half(block: Block, **other_half: Any) -> Block:
    """The block, without its bits and with nothing for its other half."""
    names = [f.name for f in dataclasses.fields(Block) if f.name not in other_half]
    return Block(**{n: materialise(getattr(block, n), omit=BITS) for n in names}, **other_half)


def _inside(at: Context, image_side: int) -> Shapes:
    """What flows through the blocks of the stage around a place."""
    stage = at.root.stages[at.index("stages")]
    return _parts(map_side(image_side, at), stage.width, _tokens(at))


def _tokens(at: Context, *, before: bool = False) -> int:
    stages = at.root.stages[: at.index("stages") + (not before)]
    return sum(stage.token is not None for stage in stages)


def _parts(side: int, width: int, tokens: int) -> Shapes:
    return ((1, side, side, width), (1, tokens, width)) if tokens else ((1, side, side, width),)


def _stem(stem: Stem, channels: int, width: int) -> nn.Module:
    return stem.build(channels, width)


class _Each(nn.Module):
    """A norm of every part."""

    def __init__(self, norm: Norm, width: int) -> None:
        super().__init__()
        self.norm = norm.build(width)

    def forward(self, *parts: Tensor) -> Parts:
        return each(self.norm, parts)


# --- what pieces cost ---------------------------------------------------------------------------

Of = Callable[[Piece, Any], np.ndarray]


@dataclass(frozen=True)
class Pieces:
    """A cost for `Additive`: what `of` says of all pieces that `find` finds in a part, joined."""

    find: Callable[[Any, Context, int], Found]
    of: Of
    image_side: int
    columns: int
    maxima: tuple[int, ...]

    def __call__(self, part: Any, at: Context) -> np.ndarray:
        found = [self.of(*piece) for piece in self.find(part, at, self.image_side)]
        rows = np.array(found).reshape(-1, self.columns)
        total = rows.sum(axis=0)
        for column in self.maxima:
            total[column] = rows[:, column].max(initial=0.0)
        return total


def _require_side(image_side: Any) -> None:
    if type(image_side) is not int or image_side < 1:
        raise SpaceError(f"`image_side` must be a whole number of pixels, 1 or more: got {image_side!r}.")


def _summed(space: Space, image_side: int, of: Of, columns: int, maxima: tuple[int, ...] = ()) -> Additive:
    _require_side(image_side)
    rules = {c: Pieces(find, of, image_side, columns, maxima) for c, find in PIECES.items()}
    return Additive(space, rules, maxima)


FEW = frozenset({Bits(4), Bits(4, 8), Bits(8, 8)})
"""Bits for which there may be a kernel of its own; all others run as floats."""


@lru_cache(maxsize=100_000)
def _counted(
    piece: Piece, few: tuple[tuple[str, Bits], ...], quantization: Quantization = Quantization()
) -> np.ndarray:
    module, by_name = piece.build(), dict(few)
    if few:
        module, _ = at_bits(module, lambda name: by_name.get(name, FULL), quantization)
    return count(module, *piece.examples())


@lru_cache(maxsize=100_000)
def _remembered(piece: Piece) -> tuple[int, int]:
    return memory(piece.build(), *piece.examples())


@lru_cache(maxsize=100_000)
def _shapes(piece: Piece) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in piece.build().named_parameters()}


def _features(quantization: Quantization, piece: Piece, part: Any) -> np.ndarray:
    few = tuple((name, bits) for name, bits in _bits(piece, part).items() if bits in FEW)
    return _counted(piece, few, quantization) if few else _counted(piece, ())


def _bits(piece: Piece, part: Any) -> dict[str, Bits]:
    """Of its parameters by name."""
    return {
        name: of_parameter(bits_by_path, part, name) if len(shape) > 1 else FULL
        for name, shape in _shapes(piece).items()
    }


def _figures(nested: bool, piece: Piece, part: Any) -> np.ndarray:
    shapes, bits = _shapes(piece), _bits(piece, part)
    size = sum(payload_bytes(shape, bits[name].weight, nested=nested) for name, shape in shapes.items())
    activations, peak = _remembered(piece)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    return np.array([parameters, macs(_counted(piece, ())), activations, peak, size], dtype=np.float64)


@dataclass(frozen=True)
class Mmacs:
    """Of a space, the function from genes (n, genes) to 10^6 multiply-accumulates (n,) of one image of that
    side: a `cost` of rules of training.

    Example:
        >>> Recipe(subnets=CostBalanced(Mmacs(32)))
    """

    image_side: int

    def __call__(self, space: Space) -> Callable[[np.ndarray], np.ndarray]:
        table, column = figures(space, self.image_side), FIGURES.index("mmacs")
        return lambda genes: table(genes)[:, column]
