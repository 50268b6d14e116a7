"""What every hierarchical transformer keeps to, and what a space may ask of it besides.

A law is a rule of `nas.space.Constraint`: of a part and its context, what is wrong, or None. It reads no more
than it must, since counting and sampling try it for every combination of what it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nas.errors import SpaceError
from nas.layers import Bits, Block, ChannelMixer, Downsample, Global, Mixer, NoFfn, NoMixer, Stem, Window
from nas.layers.downsampling.query_pooling import QueryPooling
from nas.space import Context, materialise

if TYPE_CHECKING:
    from search_spaces.hierarchical import Head, Stage


@dataclass(frozen=True)
class FitsTheMap:
    """Windows tile their map, strides divide it."""

    image_side: int

    def __call__(self, part: Mixer | Downsample | Stem, context: Context) -> str | None:
        side = self.image_side
        if not isinstance(part, Stem):
            side = map_side(self.image_side, context, before=isinstance(part, Downsample))
        return part.misfit(side, side)


@dataclass(frozen=True)
class ShiftsSomething:
    """Only several windows can shift."""

    image_side: int

    def __call__(self, window: Window, context: Context) -> str | None:
        if not window.shift or window.size < (side := map_side(self.image_side, context)):
            return None
        return (
            f"must leave more than one window to shift: got size={window.size} on {side}×{side}. "
            f"Use shift=False or a smaller size."
        )


NO_MATTER = frozenset({"norm", "norm_first", "activation", "bias", "bits"})
"""Fields on which no width depends: a law that does not read them counts far faster."""


def takes_width(stage: Stage, context: Context) -> str | None:
    """Stem or downsampling can make the width; without a downsampling nothing could change it."""
    i, root = context.index("stages"), context.root
    if i and stage.down is None and stage.width != root.stages[i - 1].width:
        return other_width(root.stages[i - 1].width, stage.width)
    maker = stage.down if i else root.stem
    if maker is None or isinstance(maker, QueryPooling):
        return None
    try:  # nobody knows better than the builder
        with torch.device("meta"):
            plain = materialise(maker, NO_MATTER)
            plain.build(root.stages[i - 1].width if i else root.channels, stage.width)
    except SpaceError as error:
        return f"must have a width that it can be given. {error}"
    return None


def begins_with_the_stem(stage: Stage, context: Context) -> str | None:
    """Before the first stage stands the stem, and nothing else."""
    if context.index("stages") or stage.down is None:
        return None
    return follows_the_stem(stage.down)


def follows_the_stem(down: Downsample) -> str:
    """What is wrong with a first stage that begins otherwise."""
    return f"must have down=None, since it follows the stem: got {down.__class__.__name__}."


def finds_its_token(head: Head, context: Context) -> str | None:
    """A head that looks at the class token needs one."""
    if head.pool != "token" or any(stage.token is not None for stage in context.root.stages):
        return None
    return (
        "must find a class token where pool='token', but no stage has one. Give one a `token`, or use 'mean'."
    )


def other_width(previous: int, width: int) -> str:
    """What is wrong with a stage that only a downsampling could give its width."""
    return (
        f"must have the width of the stage before, {previous}, where down=None: got width={width}. Choose a "
        f"`down`."
    )


@dataclass(frozen=True)
class PoolsQueries:
    """Query pooling is the work of the first block's mixer."""

    image_side: int

    def __call__(self, stage: Stage, context: Context) -> str | None:
        down = stage.down
        if not isinstance(down, QueryPooling) or context.index("stages") == 0:
            return None
        if not stage.blocks:
            return "must have a block, which pools the queries, where down=QueryPooling. Use another `down`."
        if any(before.token is not None for before in context.root.stages[: context.index("stages")]):
            return "must not get a token beside the map, where down=QueryPooling. Use another `down`."
        mixer = stage.blocks[0].mixer
        if mixer.__class__.build_pooling is Mixer.build_pooling:
            return (
                f"must begin with a mixer that can pool its queries, where down=QueryPooling: got "
                f"{mixer.__class__.__name__}. Use Global, MaskUnit or Pooled, or another `down`."
            )
        side = map_side(self.image_side, context, before=True)
        return mixer.misfit_pooling(side, side, down.stride) or stage.blocks[0].misfit_pooling()


def find_a_kernel(bits: Bits, _: Context) -> str | None:
    """Whole numbers are multiplied by whole numbers."""
    return bits.misfit()


def holds_together(block: Block, _: Context) -> str | None:
    """A block's parts and their arrangement go together."""
    return block.mismatch()


def does_something(block: Block, _: Context) -> str | None:
    """An empty block would be a shorter stage under another name."""
    parts = (getattr(block, name) for name in ("mixer", "ffn", "mixer2", "ffn2"))
    if not all(part is None or isinstance(part, (NoMixer, NoFfn)) for part in parts):
        return None
    return "must do something: got NoMixer and NoFfn. Use another mixer or ffn, or a block fewer."


def one_token(stage: Stage, context: Context) -> str | None:
    """Blocks take one token beside the map."""
    before = context.root.stages[: context.index("stages")]
    if stage.token is None or all(other.token is None for other in before):
        return None
    return "must leave the class token to one stage: an earlier one has it already. Use token=None."


def takes_tokens(part: Mixer | ChannelMixer | Downsample, context: Context) -> str | None:
    """From the stage on where a class token joins, every part has something to do with it."""
    i = context.index("stages")
    before = isinstance(part, Downsample) or (
        pools_queries(context.root.stages[i], i) and context.index("blocks") == 0
    )
    stages = context.root.stages[: i + (not before)]
    if part.takes_tokens or all(stage.token is None for stage in stages):
        return None
    name = part.__class__.__name__
    if isinstance(part, Global):
        name += f" with {part.position.__class__.__name__}"
    return (
        f"must take the class token beside the map, which {name} does not. Use Global with NoPosition or "
        f"Rotary, ConvProjection, Mlp, Gated, DepthwisePooling(tokens=True), or no `token`."
    )


def pools_queries(stage: Stage, i: int) -> bool:
    """Whether the first block of stage `i` pools queries, before a token joins."""
    return i > 0 and isinstance(stage.down, QueryPooling)


@dataclass(frozen=True)
class NeverGoesBack:
    """Once a block uses one of `late`, none after it uses one of `early` (EfficientFormer, Li et al., 2022,
    §4.1: pooling first, attention last).

    Example:
        >>> Constraint(Block, NeverGoesBack(late=(Global,), early=(Pooling,)))
    """

    late: tuple[type, ...]
    early: tuple[type, ...]

    def __call__(self, block: Block, context: Context) -> str | None:
        early = [m for m in (block.mixer, block.mixer2) if isinstance(m, self.early)]
        if not early:
            return None
        for mixers in _mixers_before(context):  # the nearest first: an `early` one has passed this law itself
            if any(isinstance(m, self.late) for m in mixers):
                return (
                    f"must not go back: {early[0].__class__.__name__} comes after one of "
                    f"{', '.join(c.__name__ for c in self.late)}."
                )
            if any(isinstance(m, self.early) for m in mixers):
                return None
        return None


def _mixers_before(context: Context) -> Iterator[tuple[Mixer | None, ...]]:
    """Of the blocks before one, from the nearest on."""
    stage, i = context.index("stages"), context.index("blocks")
    for block in reversed(list(context.parent.blocks[:i])):
        yield block.mixer, block.mixer2
    for j in reversed(range(stage)):
        for block in reversed(list(context.root.stages[j].blocks)):
            yield block.mixer, block.mixer2


@dataclass(frozen=True)
class OneMixerPerStage:
    """All blocks of a stage mix with the same kind, which each stage chooses (Visformer, Chen et al., 2021,
    §3.2: convolutions in early stages, attention in late ones).

    Example:
        >>> Constraint(Block, OneMixerPerStage())
    """

    def __call__(self, block: Block, context: Context) -> str | None:
        if context.index("blocks") == 0:
            return None
        first, mixers = (
            [m.__class__ for m in (b.mixer, b.mixer2) if m is not None]
            for b in (context.parent.blocks[0], block)
        )
        if mixers == first:
            return None
        wanted, got = (" and ".join(c.__name__ for c in classes) for classes in (first, mixers))
        return f"must mix as the first block of its stage does, with {wanted}: got {got}."


def map_side(image_side: int, context: Context, *, before: bool = False) -> int:
    """Side of the feature map at a place inside a stage, or `before` that stage."""
    side = context.root.stem.after(image_side)
    for stage in context.root.stages[: context.index("stages") + (not before)]:
        if stage.down is not None:
            side = stage.down.after(side)
    return int(side)
