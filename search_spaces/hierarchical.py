"""Hierarchical transformers for images: stages of falling resolution, every choice made per layer.

The dataclasses are the architecture, `space(task)` is the same with holes, `build` makes the module.
What a mixer, a channel mixer, a norm, a stem … may be is in `nas.layers`, a file each.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from itertools import islice, product
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nas.errors import DataError, SpaceError
from nas.layers import (
    Bits,
    Block,
    ChannelMixer,
    Checked,
    Choice,
    ConditionalPosition,
    Downsample,
    Global,
    LayerNorm,
    Mixer,
    Mlp,
    Norm,
    OverlapStem,
    PatchMerging,
    Position,
    Stem,
    Window,
    genes_of,
    possible,
    setting,
)
from nas.layers.block import call, each
from nas.layers.choice import Parts
from nas.layers.downsampling.query_pooling import QueryPooling
from nas.space import FIRST, Constraint, Space, is_hole, oneof, repeat
from search_spaces.laws import (
    FitsTheMap,
    PoolsQueries,
    ShiftsSomething,
    begins_with_the_stem,
    does_something,
    find_a_kernel,
    finds_its_token,
    follows_the_stem,
    holds_together,
    one_token,
    other_width,
    takes_tokens,
    takes_width,
)

C = TypeVar("C", bound=Choice)
MERGING = PatchMerging()
CONDITIONAL = ConditionalPosition()


@dataclass(frozen=True)
class ClassToken(Checked):
    """A learned token beside the map (ViT, Dosovitskiy et al., 2021), with a `position` of its own or not."""

    position: bool = False


@dataclass(frozen=True)
class Stage(Checked):
    """Blocks at one resolution.

    Attributes:
        down: how the map comes from the stage before; None: unchanged.
        token: one that joins the map here.
        norm: after the blocks.
    """

    width: int
    blocks: tuple[Block, ...]
    down: Downsample | None = field(default=None, metadata=FIRST)  # sides of maps follow from it
    position: Position = ConditionalPosition()
    token: ClassToken | None = field(default=None, metadata=FIRST)  # not every part takes one
    norm: Norm | None = None


@dataclass(frozen=True)
class Head(Checked):
    """Norm, mean over positions (or the class token, `pool="token"`), linear classifier.

    Attributes:
        norm: None: none.
        norm_first: before the mean, or after it.
        classifiers: as many, whose mean is the answer (two where one was taught by distillation, DeiT).
    """

    pool: str = setting("mean", kw_only=False, among=("mean", "token"))
    norm: Norm | None = LayerNorm()
    norm_first: bool = True
    classifiers: int = 1
    bits: Bits = Bits()


@dataclass(frozen=True)
class HierarchicalTransformer(Checked):
    """A stem, stages, and a head."""

    stem: Stem
    stages: tuple[Stage, ...]
    classes: int
    channels: int = 1
    head: Head = Head()

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.stages, tuple) and not self.stages:
            raise SpaceError("`stages` of HierarchicalTransformer must hold one or more: got ().")


# --- the space ----------------------------------------------------------------------------------


def space(
    task: Any,
    *,
    widths: tuple[tuple[int, ...], ...] = ((8, 16, 32), (16, 32, 64)),
    depths: tuple[int, int] = (1, 3),
    mixers: Sequence[Mixer] | None = None,
    ffns: Sequence[ChannelMixer] | None = None,
    block: Callable[[Any, Any], Block] = Block,
    stem: Any = None,
    down: Any = MERGING,
    position: Any = CONDITIONAL,
    heads: tuple[int, ...] = (1, 2, 4),
    windows: tuple[int, ...] = (2, 4),
    ratios: tuple[float, ...] = (1, 2, 3),
    bits: tuple[int, ...] = (4, 8, 32),
    activations: tuple[int, ...] = (32,),
    patch: int | None = None,
    constraints: Sequence[Constraint] = (),
) -> Space:
    """The space for a task with images: classes and channels come from it, and what fits its side.

    Args:
        task: has `classes` and `image_shape` = (channels, side, side).
        widths: choices of width per stage; their number is that of the stages.
        depths: fewest and most blocks per stage.
        mixers: what a block may mix with, with holes of their own; default: windows, shifted windows and
            global attention, of `heads` and `windows`.
        ffns: channel mixers likewise; default: an MLP of `ratios`.
        block: what makes a block of a mixer and a channel mixer, `partial(Block, topology=oneof(…))` say.
        stem: what makes a map of the image, or a choice of that; default: an `OverlapStem` of `patch`.
        down: how a map comes from stage to stage, or a choice of that; None: all stages have one resolution.
        position: what tells the positions of a stage apart, or a choice of that.
        bits: of the weights of each mixer and channel mixer.
        activations: bits of the inputs of their linear layers, 8 or 32; those of 8 go with weights of 8 or
            fewer.
        patch: side of a token in pixels; default: the smallest that leaves a map of at most 8 × 8 (or the
            smallest beyond) which every stage can halve.
        constraints: laws beside those that every legal architecture keeps to, such as `NeverGoesBack`.

    Raises:
        DataError: images that are not square, or that no patch divides so.
        SpaceError: an argument without values, or with one that no part can have.

    Example:
        >>> space(task, mixers=(Global(oneof(1, 2, 4)), DepthwiseConv(oneof(3, 5))), depths=(2, 6))
    """
    channels, side = _image(task)
    _require_arguments(widths, depths, block, heads=heads, windows=windows, ratios=ratios)
    _require_arguments(widths, depths, block, bits=bits, activations=activations)
    if stem is None:
        stem = OverlapStem(_patch(side, len(widths)) if patch is None else patch)
    if mixers is None:
        if isinstance(stem, Stem) and down is MERGING and not stem.misfit(side, side):
            _require_windows(windows, stem.after(side), len(widths))
        window = {"heads": oneof(*heads), "size": oneof(*windows)}
        mixers = Window(**window, shift=False), Window(**window, shift=True), Global(oneof(*heads))
    if ffns is None:
        ffns = (Mlp(oneof(*ratios)),)
    _require_choices("mixers", mixers, Mixer, "Global(oneof(1, 2))")
    _require_choices("ffns", ffns, ChannelMixer, "Mlp(oneof(1, 2))")
    if isinstance(stem, Stem) and not any(map(is_hole, vars(stem).values())) and not stem.misfit(side, side):
        _require_fit(mixers, stem.after(side), down, len(widths))
    width_bits = Bits(oneof(*bits), activations[0] if len(activations) == 1 else oneof(*activations))
    blocks = repeat(
        block(
            _either([_at_bits(mixer, width_bits) for mixer in mixers]),
            _either([_at_bits(ffn, width_bits) for ffn in ffns]),
        ),
        *depths,
    )
    template = HierarchicalTransformer(
        stem=stem,
        stages=tuple(
            Stage(oneof(*choices), blocks, down if i else None, position) for i, choices in enumerate(widths)
        ),
        classes=task.classes,
        channels=channels,
    )
    more = constraints if isinstance(constraints, (tuple, list)) else (constraints,)
    return Space(template, [*laws(side), *more])


def with_holes(choice: type[C], **fixed: Any) -> C:
    """A choice whose genes are holes over the values that its class names, but for those that are `fixed`.

    Example:
        >>> with_holes(Window, heads=2)
        Window(heads=2, size=oneof(2, 4), shift=oneof(False, True), …)
    """
    is_choice = isinstance(choice, type) and issubclass(choice, Choice)
    if not is_choice or getattr(getattr(choice, "build", None), "__isabstractmethod__", False):
        raise SpaceError(
            f"`with_holes` must be given a class of choices that can be built, such as Window: got "
            f"{choice!r}."
        )
    known = {f.name: f for f in fields(choice)}
    if unknown := fixed.keys() - known.keys():
        raise SpaceError(
            f"{choice.__name__} must have what is fixed: {sorted(unknown)[0]} is not among "
            f"{', '.join(known)}."
        )
    holes = {name: oneof(*values) for name, values in genes_of(choice).items() if name not in fixed}
    for name, f in known.items():
        if f.default is MISSING and name not in holes | fixed:
            raise SpaceError(f"`{name}` of {choice.__name__} must be fixed: it has no values of its own.")
    return choice(**holes, **fixed)


def _require_arguments(widths: Any, depths: Any, block: Any, **values: Any) -> None:
    """Raises SpaceError for arguments of `space` of which no architecture can be made."""
    for name, given in values.items():
        _require_some(name, given)
    if not isinstance(widths, Sequence) or not widths or not all(map(_is_some, widths)):
        raise SpaceError(
            f"`widths` must hold a tuple of choices for each stage, such as ((16, 32), (32, 64)): got "
            f"{widths!r}."
        )
    if not (isinstance(depths, Sequence) and len(depths) == 2 and all(type(d) is int for d in depths)):
        raise SpaceError(
            f"`depths` must be the fewest and the most blocks of a stage, such as (1, 3): got {depths!r}."
        )
    if not callable(block):
        raise SpaceError(
            f"`block` must make a Block of a mixer and a channel mixer, as partial(Block, norm=…) does: got "
            f"{block!r}."
        )


def _is_some(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0


def _require_some(name: str, values: Any) -> None:
    if not _is_some(values):
        raise SpaceError(f"`{name}` must be a tuple that is not empty: got {values!r}.")


def _require_windows(windows: Sequence[int], side: int, stages: int) -> None:
    """A size that divides no map would be left out of the space without a word."""
    sides = [side // 2**i for i in range(stages)]
    for size in windows:
        if type(size) is int and size > 0 and all(s % size for s in sides):
            raise SpaceError(
                f"`windows` must divide a map: got {size}, where maps have sides of "
                f"{', '.join(map(str, sides))}. Leave it out, or choose another `patch`."
            )


def _require_fit(mixers: Sequence[Mixer], side: int, down: Any, stages: int) -> None:
    """Refuses a mixer that fits no map whatever its holes become: it would never be drawn, without a word."""
    stride = 1 if down is None else getattr(down, "stride", None)
    if type(stride) is not int:
        return  # several ways of downsampling, which may differ
    sides = [side // stride**i for i in range(stages)]
    for mixer in mixers:
        wholes = list(islice(_wholes(mixer), MOST_WHOLES))
        if len(wholes) < MOST_WHOLES and all(whole.misfit(s, s) for whole in wholes for s in sides):
            maps = ", ".join(map(str, sides))
            raise SpaceError(
                f"`mixers` must fit a map: {mixer} fits none of the sides {maps}. It "
                f"{wholes[0].misfit(sides[0], sides[0])}"
            )


MOST_WHOLES = 1000


def _wholes(choice: C) -> Iterator[C]:
    """All that a choice may become, as far as its own holes go."""
    names = [f.name for f in fields(choice)]
    for values in product(*(list(possible(getattr(choice, name))) for name in names)):
        yield replace(choice, **dict(zip(names, values, strict=True)))


def _at_bits(choice: Any, bits: Bits) -> Any:
    """What has no weights has none to store at any bits."""
    return replace(choice, bits=bits) if choice.has_weights else choice


def _require_choices(name: str, choices: Any, family: type[Choice], example: str) -> None:
    _require_some(name, choices)
    for choice in choices:
        if not isinstance(choice, family):
            raise SpaceError(
                f"`{name}` must hold instances of {family.__name__}, with values or holes, such as "
                f"{example}: got {choice!r}."
            )


def _either(options: Sequence[Any]) -> Any:
    return oneof(*options) if len(options) > 1 else options[0]


def laws(image_side: int) -> list[Constraint]:
    """What every legal architecture for images of that side keeps to."""
    if type(image_side) is not int or image_side < 1:
        raise SpaceError(f"`image_side` must be a whole number of pixels, 1 or more: got {image_side!r}.")
    return [
        Constraint(Mixer, FitsTheMap(image_side)),
        Constraint(Window, ShiftsSomething(image_side)),
        Constraint(Downsample, FitsTheMap(image_side)),
        Constraint(Stem, FitsTheMap(image_side)),
        Constraint(Stage, takes_width),
        Constraint(Stage, PoolsQueries(image_side)),
        Constraint(Bits, find_a_kernel),
        Constraint(Block, holds_together),
        Constraint(Block, does_something),
        Constraint(Stage, one_token),
        Constraint(Stage, begins_with_the_stem),
        Constraint(Head, finds_its_token),
        *(Constraint(part, takes_tokens) for part in (Mixer, ChannelMixer, Downsample)),
    ]


def _image(task: Any) -> tuple[int, int]:
    """Channels and side of the images of a task."""
    shape = getattr(task, "image_shape", None)
    if not (isinstance(shape, tuple) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)):
        raise DataError(
            f"A task must have `image_shape`, whole numbers (channels, side, side), as digits() does: got "
            f"{shape!r} of {task!r}."
        )
    channels, height, width = shape
    if height != width:
        raise DataError(
            f"Images must be square for this space: got {height}×{width}. Give `side` to `from_path` (--set "
            f"side=32), or crop them."
        )
    return channels, height


LARGE_PATCH = 8  # pixels, beyond which the default is told of


def _patch(side: int, stages: int) -> int:
    step = 2 ** (stages - 1)
    for patch in range(1, side + 1):
        on_map = side // patch
        if side % patch == 0 and on_map <= max(8, step) and on_map % step == 0:
            if patch > LARGE_PATCH:
                warnings.warn(
                    f"Images of {side} pixels are cut into patches of {patch} × {patch}, so that the map has "
                    f"{on_map} × {on_map}. Give `patch`, such as 4, and more `widths` for more stages.",
                    stacklevel=3,
                )
            return patch
    raise DataError(
        f"The side of the images must be a multiple of {step}, so that {stages} stages can halve the map: "
        f"got {side}. Resize them, to {step * max(1, math.ceil(side / step))} say, or give fewer `widths`."
    )


# --- the builder --------------------------------------------------------------------------------


class Network(nn.Module):
    """(B, channels, H, W) to (B, classes), at any H and W that the choices allow."""

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = head

    def forward(self, x_BCHW: Tensor) -> Tensor:
        parts: Parts = (self.stem(x_BCHW),)
        for stage in self.stages:
            parts = stage(*parts)
        return self.head(*parts)


class StageModule(nn.Module):
    """Downsampling, class token, position, blocks, norm, as far as there are such; parts to parts."""

    def __init__(self, previous: int | None, stage: Stage) -> None:
        super().__init__()
        width = stage.width
        if previous is None and stage.down is not None:
            raise SpaceError(f"The first stage {follows_the_stem(stage.down)}")
        if stage.down is None and previous not in (None, width):
            raise SpaceError(f"A stage {other_width(previous, width)}")
        self.pools = previous is not None and isinstance(stage.down, QueryPooling)
        self.down = None
        if previous is not None and stage.down is not None and not self.pools:
            self.down = stage.down.build(previous, width)
        self.token = nn.Parameter(torch.zeros(width)) if stage.token else None
        has_position = stage.token is not None and stage.token.position
        self.token_position = nn.Parameter(torch.zeros(width)) if has_position else None
        self.position = stage.position.build(width)
        self.blocks = nn.ModuleList(
            build_block(block, width, previous, stage.down if i == 0 else None)
            for i, block in enumerate(stage.blocks)
        )
        self.norm = stage.norm.build(width) if stage.norm else None

    def forward(self, *parts: Tensor) -> Parts:
        blocks = iter(self.blocks)
        if self.down is not None:
            parts = call(self.down, parts)
        elif self.pools:
            parts = next(blocks)(*parts)
        if self.token is not None and len(parts) > 1:
            raise SpaceError("One stage alone must have a `token`: an earlier one has it already.")
        parts = (self.position(parts[0]), *parts[1:], *self._tokens(parts[0]))
        for block in blocks:
            parts = block(*parts)
        return parts if self.norm is None else each(self.norm, parts)

    def _tokens(self, x_BHWC: Tensor) -> Parts:
        if self.token is None:
            return ()
        token = self.token if self.token_position is None else self.token + self.token_position
        return (token.expand(x_BHWC.shape[0], 1, -1),)  # len() would fix the batch size of an export


def build_block(block: Block, width: int, previous: int | None, down: Downsample | None) -> nn.Module:
    """A block behind `down`, which it may have to do by itself."""
    if previous is not None and isinstance(down, QueryPooling):
        return block.build_pooling(previous, width, down)
    return block.build(width)


class HeadModule(nn.Module):
    """Parts to (B, classes)."""

    def __init__(self, width: int, classes: int, head: Head) -> None:
        super().__init__()
        self.pool, self.norm_first = head.pool, head.norm_first
        self.norm = head.norm.build(width) if head.norm else nn.Identity()
        self.linear = nn.Linear(width, classes)
        self.others = nn.ModuleList(nn.Linear(width, classes) for _ in range(head.classifiers - 1))

    def forward(self, x_BHWC: Tensor, t_BTC: Tensor | None = None) -> Tensor:
        x = self._pooled(x_BHWC, t_BTC)
        y = self.linear(x)
        for other in self.others:
            y = y + other(x)
        return y / (1 + len(self.others)) if len(self.others) else y

    def _pooled(self, x_BHWC: Tensor, t_BTC: Tensor | None) -> Tensor:
        if self.pool == "token":
            if t_BTC is None:
                raise SpaceError("`head.pool='token'` must find a class token: give a stage `token`.")
            return self.norm(t_BTC[:, 0])
        if self.norm_first:
            return self.norm(x_BHWC).mean((1, 2))
        return self.norm(x_BHWC.mean((1, 2)))


def build(architecture: HierarchicalTransformer) -> nn.Module:
    """The plain module of an architecture.

    Raises:
        SpaceError: it is none, has holes, or cannot be built.
    """
    if not isinstance(architecture, HierarchicalTransformer):
        raise SpaceError(f"`build` must be given a HierarchicalTransformer: got {architecture!r}.")
    try:
        return _built(architecture)
    except (TypeError, AttributeError) as error:
        if path := _first_hole(architecture):
            raise SpaceError(
                f"`build` must be given a whole architecture, but there is a hole at `{path}`. Draw one: "
                f"Space(template).sample(rng)."
            ) from error
        raise


def _first_hole(value: Any, path: str = "") -> str | None:
    if is_hole(value):
        return path
    parts: Any = ()
    if isinstance(value, tuple):
        parts = enumerate(value)
    elif is_dataclass(value):
        parts = ((f.name, getattr(value, f.name)) for f in fields(value))
    found = (_first_hole(part, f"{path}.{name}" if path else str(name)) for name, part in parts)
    return next((hole for hole in found if hole), None)


def _built(architecture: HierarchicalTransformer) -> nn.Module:
    widths = [stage.width for stage in architecture.stages]
    stages = [
        StageModule(previous, stage)
        for previous, stage in zip([None, *widths[:-1]], architecture.stages, strict=True)
    ]
    stem = architecture.stem.build(architecture.channels, widths[0])
    return Network(stem, stages, HeadModule(widths[-1], architecture.classes, architecture.head))
