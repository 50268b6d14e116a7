"""Hierarchical transformers for images: stages of falling resolution, every choice made per layer.

The dataclasses are the architecture, `space(task)` is the same with holes, `build` makes the module.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas import layers
from nas.devices.costs import count
from nas.errors import DataError, SpaceError
from nas.space import Additive, Constraint, Context, Space, oneof, repeat


@dataclass(frozen=True)
class Bits:
    """Bit-width at which the weights of a part are stored."""

    weight: int = 32


@dataclass(frozen=True)
class Global:
    """Attention of every position to all."""

    heads: int
    head_dim: int = 8
    bits: Bits = Bits()


@dataclass(frozen=True)
class Window:
    """Attention within windows of `size` × `size`; `shift` moves them by half their side (Swin)."""

    heads: int
    size: int
    shift: bool = False
    head_dim: int = 8
    bits: Bits = Bits()


@dataclass(frozen=True)
class Mlp:
    """Two linear layers; `ratio` is that of hidden units to width."""

    ratio: float
    bits: Bits = Bits()


@dataclass(frozen=True)
class Block:
    mixer: Global | Window
    ffn: Mlp


@dataclass(frozen=True)
class Stage:
    """Blocks at one resolution; from one stage to the next the side of the map halves."""

    width: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Stem:
    """Tokens of `patch` × `patch` pixels."""

    patch: int = 1


@dataclass(frozen=True)
class HierarchicalTransformer:
    stem: Stem
    stages: tuple[Stage, ...]
    classes: int
    channels: int = 1


# --- the space ----------------------------------------------------------------------------------


def space(
    task: Any,
    *,
    widths: tuple[tuple[int, ...], ...] = ((8, 16, 32), (16, 32, 64)),
    depths: tuple[int, int] = (1, 3),
    heads: tuple[int, ...] = (1, 2, 4),
    windows: tuple[int, ...] = (2, 4),
    ratios: tuple[float, ...] = (1, 2, 3),
    bits: tuple[int, ...] = (4, 8, 32),
    patch: int | None = None,
) -> Space:
    """The space for a task with images: classes and channels come from it, and what fits its side.

    Args:
        task: has `classes` and `image_shape` = (channels, side, side).
        widths: choices of width per stage; their number is that of the stages.
        depths: fewest and most blocks per stage.
        patch: side of a token in pixels; default: the smallest that leaves a map of at most 8 × 8 which
            every stage can halve.

    Raises:
        DataError: images that are not square, or that no patch divides so.
    """
    channels, side = _square(task.image_shape)
    width_bits = Bits(oneof(*bits))
    block = Block(
        mixer=oneof(
            Window(oneof(*heads), oneof(*windows), shift=False, bits=width_bits),
            Window(oneof(*heads), oneof(*windows), shift=True, bits=width_bits),
            Global(oneof(*heads), bits=width_bits),
        ),
        ffn=Mlp(oneof(*ratios), width_bits),
    )
    template = HierarchicalTransformer(
        stem=Stem(patch or _patch(side, len(widths))),
        stages=tuple(Stage(oneof(*choices), repeat(block, *depths)) for choices in widths),
        classes=task.classes,
        channels=channels,
    )
    return Space(template, [Constraint(Window, WindowFits(side))])


@dataclass(frozen=True)
class WindowFits:
    """The windows of a block must tile its map, and only several windows can shift."""

    side: int

    def __call__(self, window: Window, context: Context) -> str | None:
        side = map_side(self.side, context)
        if side % window.size:
            divisors = [str(d) for d in range(1, side + 1) if side % d == 0]
            return (
                f"must divide the feature map: got size={window.size} on {side}×{side}. "
                f"Use one of {', '.join(divisors)}."
            )
        if window.shift and window.size == side:
            return (
                f"must leave more than one window to shift: got size={window.size} on {side}×{side}. "
                f"Use shift=False or a smaller size."
            )
        return None


def map_side(image_side: int, context: Context) -> int:
    """Side of the feature map at a place inside a stage."""
    return image_side // context.root.stem.patch // 2 ** context.index("stages")


def _square(shape: tuple[int, ...]) -> tuple[int, int]:
    channels, height, width = shape
    if height != width:
        raise DataError(f"Images must be square for this space: got {height}×{width}. Crop or pad them.")
    return channels, height


def _patch(side: int, stages: int) -> int:
    for patch in range(1, side + 1):
        on_map = side // patch
        if side % patch == 0 and on_map <= 8 and on_map % 2 ** (stages - 1) == 0:
            return patch
    raise DataError(
        f"The side of the images must have a divisor that leaves a map of at most 8×8 which {stages} "
        f"stages can halve: got {side}. Resize them to a multiple of {2 ** (stages - 1)}, such as 8 or 32."
    )


# --- the builder --------------------------------------------------------------------------------


class Network(nn.Module):
    """Stem, stages, norm, mean over positions, linear classifier: (B, C, H, W) to (B, classes)."""

    def __init__(self, stem: nn.Module, stages: list[nn.Module], width: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = Head(width, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = self.stem(x_BCHW)
        for stage in self.stages:
            x_BHWC = stage(x_BHWC)
        return self.head(x_BHWC)


class Head(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, classes)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.linear(self.norm(x_BHWC).mean((1, 2)))


def build(architecture: HierarchicalTransformer) -> nn.Module:
    """The plain module of an architecture."""
    widths = [stage.width for stage in architecture.stages]
    stages = [
        build_stage(previous, stage)
        for previous, stage in zip([None, *widths[:-1]], architecture.stages, strict=True)
    ]
    return Network(build_stem(architecture), stages, widths[-1], architecture.classes)


def build_stem(architecture: HierarchicalTransformer) -> nn.Module:
    width = architecture.stages[0].width
    return layers.OverlapStem(architecture.channels, width, architecture.stem.patch)


def build_stage(previous: int | None, stage: Stage) -> nn.Module:
    """A stage; `previous` is the width before it, None for the first."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(entry=build_entry(previous, stage.width))
    parts["blocks"] = nn.Sequential(*(build_block(stage.width, block) for block in stage.blocks))
    return nn.Sequential(parts)


def build_entry(previous: int | None, width: int) -> nn.Module:
    """Change of resolution (none in the first stage), then the position encoding."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if previous is not None:
        parts["merge"] = layers.PatchMerging(previous, width)
    parts["position"] = layers.ConditionalPosition(width)
    return nn.Sequential(parts)


def build_block(width: int, block: Block) -> nn.Module:
    return layers.Block(width, build_mixer(width, block.mixer), build_ffn(width, block.ffn))


def build_mixer(width: int, mixer: Global | Window) -> nn.Module:
    if isinstance(mixer, Window):
        return layers.WindowAttention(width, mixer.heads, mixer.head_dim, mixer.size, mixer.shift)
    if isinstance(mixer, Global):
        return layers.GlobalAttention(width, mixer.heads, mixer.head_dim)
    raise SpaceError(f"A mixer must be Global or Window: got {mixer!r}.")


def build_ffn(width: int, ffn: Mlp) -> nn.Module:
    return layers.Mlp(width, int(width * ffn.ratio))


# --- what the parts cost ------------------------------------------------------------------------


def costs(space: Space, image_side: int) -> Additive:
    """Operation counts of whole matrices of genes, as the sum over stem, stage entries, blocks and head.

    Each part is built without weights and counted once per distinct choice (`nas.devices.costs`).
    """
    return Additive(
        space,
        {
            HierarchicalTransformer: EndCosts(image_side),
            Stage: EntryCosts(image_side),
            Block: BlockCosts(image_side),
        },
    )


@dataclass(frozen=True)
class EndCosts:
    """Of stem and head."""

    image_side: int

    def __call__(self, architecture: HierarchicalTransformer, _: Context) -> np.ndarray:
        image = (1, architecture.channels, self.image_side, self.image_side)
        last = self.image_side // architecture.stem.patch // 2 ** (len(architecture.stages) - 1)
        width = architecture.stages[-1].width
        with torch.device("meta"):
            stem, head = build_stem(architecture), Head(width, architecture.classes)
        return _counted(stem, *image) + _counted(head, 1, last, last, width)


@dataclass(frozen=True)
class EntryCosts:
    """Of the change of resolution and the position encoding before a stage."""

    image_side: int

    def __call__(self, stage: Stage, at: Context) -> np.ndarray:
        i, side = at.index("stages"), map_side(self.image_side, at)
        previous = at.root.stages[i - 1].width if i else None
        with torch.device("meta"):
            module = build_entry(previous, stage.width)
        before = side if previous is None else 2 * side
        return _counted(module, 1, before, before, previous or stage.width)


@dataclass(frozen=True)
class BlockCosts:
    """Of one block."""

    image_side: int

    def __call__(self, block: Block, at: Context) -> np.ndarray:
        plain = Block(_without_bits(block.mixer), _without_bits(block.ffn))
        return _block_counts(map_side(self.image_side, at), at.parent.width, plain)


@lru_cache(maxsize=10_000)
def _block_counts(side: int, width: int, block: Block) -> np.ndarray:
    with torch.device("meta"):
        module = build_block(width, block)
    return _counted(module, 1, side, side, width)


def _without_bits(part: Any) -> Any:
    """A part with its default bits. Bits cost no operation, and what is not read need not be told apart."""
    cls = part.__class__  # not type(part): it may be a view
    return cls(**{f.name: getattr(part, f.name) for f in fields(cls) if f.name != "bits"})


def _counted(module: nn.Module, *shape: int) -> np.ndarray:
    return count(module, torch.empty(shape, device="meta"))
