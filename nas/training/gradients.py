"""Gradients of subnets: of what a step has trained, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from nas.supernet import Box


class Gradients:
    """Sums of gradients by parameter, each over the smallest box that holds all slices that were added.

    A gradient of the whole bank would cost more to fill with zeros than a small subnet costs to train, and
    would not tell a slice that was not trained from one whose gradient is zero.
    """

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}
        self._boxes: dict[str, list[Box]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def add(self, name: str, box: Box, gradient: Tensor) -> None:
        """Adds the gradient of the slice at `box`; the tensor is taken over where it is the first."""
        self._add(name, [box], gradient)

    def update(self, other: Gradients) -> None:
        """Adds all of `other`, whose tensors are taken over."""
        for name in other:
            self._add(name, other._boxes[name], other._values[name])

    def _add(self, name: str, boxes: list[Box], value: Tensor) -> None:
        """`value` fills the hull of `boxes`."""
        if name not in self._values:
            self._values[name], self._boxes[name] = value, list(boxes)
            return
        outer, inner = self.box(name), _hull(boxes)
        hull = _hull([outer, inner])
        if hull != outer:
            grown = value.new_zeros([s.stop - s.start for s in hull])
            grown[_within(outer, hull)] = self._values[name]
            self._values[name] = grown
        self._values[name][_within(inner, hull)] += value
        self._boxes[name] = _outermost([*self._boxes[name], *boxes])

    def box(self, name: str) -> Box:
        """The smallest box around all slices of a parameter."""
        boxes = self._boxes[name]
        return boxes[0] if len(boxes) == 1 else _hull(boxes)

    def value(self, name: str) -> Tensor:
        """The sum over that box."""
        return self._values[name]

    def values(self) -> list[Tensor]:
        return list(self._values.values())

    def sort(self) -> None:
        """Puts `values` in the order of names, the same in all processes."""
        self._values = dict(sorted(self._values.items()))

    def trained(self, name: str) -> Tensor | None:
        """Where in the box a slice was added, bool of its shape; None: everywhere."""
        boxes = self._boxes[name]
        if len(boxes) == 1:
            return None
        hull = self.box(name)
        mask = torch.zeros(self._values[name].shape, dtype=torch.bool, device=self._values[name].device)
        for box in boxes:
            mask[_within(box, hull)] = True
        return None if bool(mask.all()) else mask

    def scale(self, factor: Tensor | float) -> None:
        for value in self._values.values():
            value.mul_(factor)

    def norm(self) -> Tensor:
        """Euclidean norm of all of them together."""
        return torch.nn.utils.get_total_norm(self.values())

    def without_conflict(self, others: Gradients) -> None:
        """Takes out of each tensor what opposes that of `others`: the largest subnet's gradient is projected
        to the normal of the others' (NASViT, Gong et al., 2022, §3.2)."""
        for name in self:
            if name not in others._values:
                continue
            mine, theirs = self._values[name], others._values[name]
            common = _overlap(self.box(name), others.box(name))
            if common is None:
                continue
            mine, part = mine[_within(common, self.box(name))], theirs[_within(common, others.box(name))]
            share = (mine * part).sum() / theirs.square().sum().clamp_min(torch.finfo(theirs.dtype).tiny)
            mine.sub_(share.clamp(max=0) * part)


def _hull(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds all of them."""
    axes = zip(*boxes, strict=True)
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in axes)


def _overlap(a: Box, b: Box) -> Box | None:
    common = tuple(slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
    return None if any(s.stop <= s.start for s in common) else common


def _within(box: Box, hull: Box) -> Box:
    """Where `box` lies in a tensor that holds `hull` alone."""
    return tuple(slice(b.start - h.start, b.stop - h.start) for b, h in zip(box, hull, strict=True))


def _holds(outer: Box, inner: Box) -> bool:
    return all(o.start <= i.start and i.stop <= o.stop for o, i in zip(outer, inner, strict=True))


def _outermost(boxes: Iterable[Box]) -> list[Box]:
    """Those that lie in no other."""
    kept: list[Box] = []
    for box in boxes:
        if not any(_holds(other, box) for other in kept):
            kept = [other for other in kept if not _holds(box, other)] + [box]
    return kept
