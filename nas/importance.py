"""Ordering by importance: a bank sorted once, so that prefixes keep what matters.

A subnet takes the first heads, units and channels. Trained as a supernet, a bank puts what matters there
by itself; a checkpoint that was trained alone does not, so it is sorted before the first step.

What may be sorted is read off the space: the axes whose length follows one gene (the heads of q, k, v and
o; the units of two linear layers; a stage's width in all that reads or writes it) must be permuted
together, and that this leaves every answer as it was is tried out, not believed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nas.errors import LayoutError
from nas.layout import Layout
from nas.supernet import Supernet

TOLERANCE = 1e-4  # of the largest output; sums taken in another order differ by some 1e-6

Member = tuple[str, int]  # a parameter's name, and a logical axis of it


@dataclass(frozen=True)
class CoupledAxis:
    """Axes of parameters that may be permuted together without any change in what the network computes.

    Attributes:
        name: the gene that sets their length.
        length: in the bank.
        members: (parameter name, logical axis).
    """

    name: str
    length: int
    members: tuple[Member, ...]


Scores = Mapping[CoupledAxis, Tensor]


def coupled_axes(supernet: Supernet, genes: Sequence[str], *inputs: Any) -> list[CoupledAxis]:
    """The axes that follow the genes named by patterns such as ``"*.heads"``, proven on `inputs`.

    An axis that several genes lengthen belongs to the one that moves the fewest: hidden units given as a
    ratio grow with the width, too, but are the ratio's. Axes cut around their centre keep their order.

    Raises:
        LayoutError: no axis follows these genes, or to permute one changes an answer; names the gene and
            the parameters.
    """
    axes = [a for a in _axes_by_gene(supernet) if any(fnmatch(a.name.partition("[")[0], g) for g in genes)]
    if not axes:
        known = sorted({axis.name for axis in _axes_by_gene(supernet)})
        raise LayoutError(
            f"Genes to order by importance must change the length of some axis: none matches "
            f"{', '.join(genes)}. Those that do are {', '.join(known[:8])}."
        )
    require_symmetry(supernet, axes, *inputs)
    return axes


def require_symmetry(supernet: Supernet, axes: Sequence[CoupledAxis], *inputs: Any) -> None:
    """Raises LayoutError where a permutation along one of `axes` changes what a subnet answers to `inputs`.

    Subnets that have an axis whole are tried until it has met every parameter of the cover, for one that is
    missing among the members may belong to a choice that the largest does not make. The weights get noise:
    biases of 0 and scales of 1 would hide that they were forgotten.
    """
    generator = torch.Generator().manual_seed(0)
    noisy = {
        n: t + 0.02 * torch.randn(t.shape, generator=generator).to(t) for n, t in supernet.state().items()
    }
    supernet = supernet.with_state(noisy)
    orders = {axis: torch.randperm(axis.length, generator=generator) for axis in axes}
    tried: set[tuple[CoupledAxis, str]] = set()
    for architecture in supernet.cover:
        layouts = supernet.layouts(architecture)
        whole = [axis for axis in axes if _is_whole(axis, layouts)]
        together = {(axis, name) for axis in whole for name in layouts}
        if not together <= tried and _changes(supernet, architecture, {a: orders[a] for a in whole}, inputs):
            wrong = [a for a in whole if _changes(supernet, architecture, {a: orders[a]}, inputs)]
            raise _asymmetry((wrong or whole)[0])
        tried |= together
    for axis in axes:
        if any((axis, name) not in tried for name, _ in axis.members):
            raise _asymmetry(axis)


def ordered(supernet: Supernet, scores: Scores) -> Supernet:
    """This supernet with every axis of `scores` sorted from the highest to the lowest.

    Statistics in buffers are not in the bank: calibrate subnets after this.
    """
    return permuted(supernet, {a: s.argsort(descending=True, stable=True) for a, s in scores.items()})


def permuted(supernet: Supernet, orders: Mapping[CoupledAxis, Tensor]) -> Supernet:
    """This supernet over a bank in which index i along an axis holds what index order[i] held."""
    bank = dict(supernet.state())
    for axis, order in orders.items():
        for name, dim in axis.members:
            bank[name] = bank[name].index_select(dim, order.to(bank[name].device))
    other = supernet.with_state(bank)
    for name, parameter in other.bank.items():
        parameter.requires_grad_(supernet.bank[name].requires_grad)
    return other


# --- scores -------------------------------------------------------------------------------------


def magnitude(supernet: Supernet, axes: Iterable[CoupledAxis]) -> Scores:
    """L2 norm of all weights that an index of an axis stands for."""
    squares = {name: weight.square() for name, weight in supernet.state().items()}
    return {axis: _per_index(axis, squares).sqrt() for axis in axes}


def taylor(
    supernet: Supernet,
    axes: Iterable[CoupledAxis],
    loss: Callable[[Supernet, Any], Tensor],
    batches: Iterable[Any],
) -> Scores:
    """What the loss would change by, to first order, without an index: (Σ gradient · weight)², mean over
    batches (NViT, Yang et al., 2023, whose Hessian-aware saliency this squared sum estimates).

    Args:
        loss: of a batch, for one architecture, the largest as a rule:
            ``lambda supernet, b: task.loss(supernet(architecture, *b.inputs), b)``.
    """
    supernet = supernet.with_state(supernet.state())
    for parameter in supernet.parameters():
        parameter.requires_grad_()
    found: dict[CoupledAxis, list[Tensor]] = {axis: [] for axis in axes}
    for batch in batches:
        gradients = torch.autograd.grad(
            loss(supernet, batch), supernet.parameters(), allow_unused=True, materialize_grads=True
        )
        products = {n: g * supernet.bank[n].detach() for n, g in zip(supernet.bank, gradients, strict=True)}
        for axis, sums in found.items():
            sums.append(_per_index(axis, products).square())
    return {axis: torch.stack(sums).mean(0) for axis, sums in found.items()}


def _per_index(axis: CoupledAxis, values: Mapping[str, Tensor]) -> Tensor:
    """`values`, given per weight, summed over all that each index of the axis stands for, (length,)."""
    sums = [values[name].movedim(d, 0).reshape(axis.length, -1).sum(1) for name, d in axis.members]
    return torch.stack(sums).sum(0)


# --- which axes belong together -------------------------------------------------------------------


def _axes_by_gene(supernet: Supernet) -> list[CoupledAxis]:
    followers = _followers(supernet)
    owner: dict[Member, str] = {}
    for gene in sorted(followers, key=lambda g: len(followers[g]), reverse=True):
        owner |= dict.fromkeys(followers[gene], gene)  # the gene that moves the fewest comes last
    by_length: dict[tuple[str, int], list[Member]] = defaultdict(list)
    for (name, axis), gene in sorted(owner.items()):
        if axis not in supernet.stored[name].centred:
            by_length[gene, supernet.stored[name].shape[axis]].append((name, axis))
    several = {gene for gene, _ in by_length if sum(g == gene for g, _ in by_length) > 1}
    return [
        CoupledAxis(f"{gene}[{length}]" if gene in several else gene, length, tuple(members))
        for (gene, length), members in by_length.items()
    ]


def _followers(supernet: Supernet) -> dict[str, set[Member]]:
    """By gene, the axes whose length differs between members of the cover that differ in that gene alone."""
    space = supernet.space
    cover = [(tuple(space.encode(a).tolist()), supernet.layouts(a)) for a in supernet.cover]
    found: dict[str, set[Member]] = defaultdict(set)
    for i, gene in enumerate(space.genes):
        alike = defaultdict(list)
        for genes, layouts in cover:
            alike[genes[:i] + genes[i + 1 :]].append({n: layout.shape for n, layout in layouts.items()})
        for shapes in alike.values():
            found[gene.name] |= set(_differing(shapes))
    return found


def _differing(shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> Iterator[Member]:
    lengths: dict[Member, set[int]] = defaultdict(set)
    for given in shapes:
        for name, shape in given.items():
            for axis, length in enumerate(shape):
                lengths[name, axis].add(length)
    return (member for member, found in lengths.items() if len(found) > 1)


def _is_whole(axis: CoupledAxis, layouts: Mapping[str, Layout]) -> bool:
    """Whether an architecture has the full length of an axis, in all members that it has."""
    present = [layouts[name].shape[d] for name, d in axis.members if name in layouts]
    return bool(present) and all(length == axis.length for length in present)


def _asymmetry(axis: CoupledAxis) -> LayoutError:
    members = ", ".join(f"{name} (axis {d})" for name, d in axis.members)
    return LayoutError(
        f"Axes that are permuted together must leave every answer as it was, but `{axis.name}` does not: "
        f"{members}. If a parameter is missing or its storage merges axes, declare its Layout; if the order "
        f"along this axis means something (rotary positions, say), leave the gene out."
    )


def _changes(
    supernet: Supernet, architecture: Any, orders: Mapping[CoupledAxis, Tensor], inputs: tuple[Any, ...]
) -> bool:
    with torch.no_grad():
        before, after = (
            _tensors(s(architecture, *inputs, quantized=False))
            for s in (supernet, permuted(supernet, orders))
        )
    pairs = list(zip(before, after, strict=True))
    return any(bool((a - b).abs().max() > TOLERANCE * b.abs().max()) for b, a in pairs)


def _tensors(outputs: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
