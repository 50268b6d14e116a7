"""The space around a point: a published architecture with holes where parts of it may be fewer.

    >>> from search_spaces.published import from_pretrained, swin_tiny
    >>> space = around(swin_tiny())
    >>> supernet = Supernet(build, space).with_weights(from_pretrained("swin_tiny", path), swin_tiny())

Every architecture of it is cut from the point's own weights; the point is its largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nas.errors import SpaceError
from nas.layers import Block, Window
from nas.layers.attention import AttentionMixer
from nas.space import Space, oneof
from search_spaces.hierarchical import HierarchicalTransformer, Stage, laws

HALF_UP = (0.5, 0.75, 1.0)
SMALLEST = 1e-6  # less of anything is nothing
STEP = 8  # widths are multiples of it, as products of matrices like them


def around(
    point: HierarchicalTransformer,
    *,
    image_side: int = 224,
    depths: Sequence[float] = HALF_UP,
    heads: Sequence[float] = HALF_UP,
    units: Sequence[float] = HALF_UP,
    widths: Sequence[float] = (),
) -> Space:
    """All that is left of `point` when it loses blocks, heads, hidden units or channels, per layer.

    Kinds of mixers, windows, strides, norms, dimensions of heads, stem and head stay as they are. Numbers
    round up; what the point has is always among the choices.

    Args:
        point: an architecture without holes, such as those of `search_spaces.published`.
        image_side: for which side of images the space is.
        depths: shares of each stage's blocks, of which the first stay.
        heads: shares of each mixer's heads.
        units: shares of each channel mixer's hidden units.
        widths: shares of each stage's width, rounded up to multiples of 8; stages choose by themselves.

    Raises:
        SpaceError: a share that is not above 0 and at most 1.

    Example:
        >>> around(swin_tiny(), depths=(), heads=(), widths=(0.5,))  # fewer units and channels alone
    """
    if not isinstance(point, HierarchicalTransformer):
        raise SpaceError(f"`point` must be an architecture, such as swin_tiny(): got {point!r}.")
    if type(image_side) is not int or image_side < 1:
        raise SpaceError(f"`image_side` must be a whole number of pixels, 1 or more: got {image_side!r}.")
    for name, shares in {"depths": depths, "heads": heads, "units": units, "widths": widths}.items():
        if not isinstance(shares, (tuple, list)):
            raise SpaceError(f"`{name}` must be a tuple of shares, such as (0.5, 1.0): got {shares!r}.")
        if wrong := [share for share in shares if not _is_share(share)]:
            raise SpaceError(f"`{name}` must be given as shares above 0 and up to 1: got {wrong[0]!r}.")
    try:
        reachable = Space(point)
    except SpaceError as error:
        raise SpaceError(f"`point` must be an architecture that can be: {error}") from error
    if reachable.genes:
        raise SpaceError(f"`point` must have no holes: got one at `{reachable.genes[0].name}`.")

    def block(whole: Block) -> Block:
        return replace(
            whole,
            mixer=_mixer(whole.mixer, heads),
            mixer2=_mixer(whole.mixer2, heads),
            ffn=_channel_mixer(whole.ffn, units),
            ffn2=_channel_mixer(whole.ffn2, units),
        )

    def stage(whole: Stage) -> Stage:
        width = _choice(whole.width, [min(whole.width, _up(whole.width * s, STEP)) for s in widths])
        blocks = tuple(map(block, whole.blocks))
        shorter = [blocks[: _up(len(blocks) * s)] for s in depths]
        return replace(whole, width=width, blocks=_choice(blocks, shorter))

    # A shift that shifts nothing is a second name for the same where shifts are chosen. Here they are not.
    kept = [law for law in laws(image_side) if law.on is not Window]
    return Space(replace(point, stages=tuple(map(stage, point.stages))), kept)


def _is_share(share: Any) -> bool:
    return isinstance(share, (int, float)) and not isinstance(share, bool) and SMALLEST <= share <= 1


def _mixer(mixer: Any, shares: Sequence[float]) -> Any:
    if not isinstance(mixer, AttentionMixer):
        return mixer
    return replace(mixer, heads=_choice(mixer.heads, [_up(mixer.heads * share) for share in shares]))


def _channel_mixer(ffn: Any, shares: Sequence[float]) -> Any:
    if not hasattr(ffn, "ratio"):
        return ffn
    return replace(ffn, ratio=_choice(ffn.ratio, [_plain(ffn.ratio * share) for share in shares]))


def _choice(whole: Any, others: Sequence[Any]) -> Any:
    """One of `others`, each once and from small to large, or `whole`, which comes last."""
    options = [*dict.fromkeys(other for other in others if other != whole)]
    options.sort(key=lambda o: len(o) if isinstance(o, tuple) else o)
    return oneof(*options, whole)


def _up(number: float, step: int = 1) -> int:
    return step * math.ceil(number / step - 1e-9)


def _plain(number: float) -> float:
    """A whole number as an int, so that an architecture has one JSON form."""
    return int(number) if number == int(number) else number
