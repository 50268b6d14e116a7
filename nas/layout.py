"""How a smaller tensor is cut from a stored one.

A prefix of the stored tensor is silently wrong where storage merges axes: the rows of a fused q/k/v
weight keep their role only when the cut is made along its logical axes (3, heads, head_dim). A relative
position table must be cut around its centre, or every row changes its meaning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas.errors import LayoutError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Logical shape of a stored tensor; axes in `centred` are cut around their middle, others in front.

    Example:
        >>> Layout((3, heads, head_dim, width))        # fused q, k, v, stored as (3·heads·head_dim, width)
        >>> Layout((heads, 13, 13), centred=(1, 2))    # relative positions −6 … 6 in both directions
    """

    shape: tuple[int, ...]
    centred: tuple[int, ...] = ()


def union(name: str, a: Layout, b: Layout) -> Layout:
    """The smallest layout from which both can be cut."""
    if len(a.shape) != len(b.shape) or a.centred != b.centred:
        raise LayoutError(
            f"`{name}` must have the same logical axes in all architectures that share it, but got {a} "
            f"and {b}. Give weights that must not be shared names of their own."
        )
    for axis in a.centred:
        if (a.shape[axis] - b.shape[axis]) % 2:
            raise LayoutError(
                f"`{name}` must be cut around its centre, so lengths along axis {axis} must be all odd or "
                f"all even: got {a.shape[axis]} and {b.shape[axis]}. Choose values of one kind."
            )
    return Layout(tuple(map(max, a.shape, b.shape)), a.centred)


def slices(name: str, stored: Layout, wanted: Layout) -> tuple[slice, ...]:
    """Where, along each logical axis, `wanted` lies in `stored`.

    Raises:
        LayoutError: it does not fit; names the path and both shapes.
    """
    if len(stored.shape) != len(wanted.shape) or any(map(int.__gt__, wanted.shape, stored.shape)):
        raise LayoutError(
            f"`{name}` must fit the bank: the architecture asks for {wanted.shape}, the bank holds "
            f"{stored.shape}. Build the supernet from a space that contains this architecture."
        )
    cuts = []
    for axis, (have, want) in enumerate(zip(stored.shape, wanted.shape, strict=True)):
        spare = have - want
        if axis in stored.centred and spare % 2:
            raise LayoutError(
                f"`{name}` must be cut around its centre, so lengths along axis {axis} must be all odd "
                f"or all even: got {want} from {have}. Choose values that are all odd or all even."
            )
        start = spare // 2 if axis in stored.centred else 0
        cuts.append(slice(start, start + want))
    return tuple(cuts)


def cut(name: str, tensor: Tensor, stored: Layout, wanted: Layout, shape: tuple[int, ...]) -> Tensor:
    """The part of `tensor` (of logical shape `stored`) that `wanted` names, as a parameter of `shape`.

    A view wherever no merged axis is cut.
    """
    if math.prod(wanted.shape) != math.prod(shape):
        raise LayoutError(f"`{name}` has shape {shape}, but its layout says {wanted.shape}.")
    if stored.shape != wanted.shape:
        tensor = tensor[slices(name, stored, wanted)]
    return tensor.reshape(shape)
