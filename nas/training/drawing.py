"""The architectures of a step, and their skeletons, when they are wanted."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from nas.skeleton import CACHED
from nas.space import Space
from nas.supernet import Supernet
from nas.training.heap import hidden, sweep
from nas.training.streams import RULES, reproducible
from nas.training.subnets import Subnets, architectures_of


class Drawing:
    """What a rule gives for each step of a training, of which the bank has all weights.

    Args:
        space: of which the rule draws, a part of the supernet's.
        steps: of the whole training.
    """

    def __init__(
        self, supernet: Supernet, rule: Subnets, space: Space, seed: int, steps: int, device: torch.device
    ) -> None:
        self.supernet, self.rule, self.space = supernet, rule, space
        self.seed, self.steps, self.device = seed, steps, device
        self._ready: tuple[int, list[Any]] = (-1, [])  # a step, and its architectures
        self._hides, self._alive = True, WeakSet[nn.Module]()  # whether skeletons are; those that there are

    def at(self, step: int) -> list[Any]:
        """The architectures of a step, whose skeletons are in the cache then."""
        if self._ready[0] != step:
            self._ready = step, self._drawn(step)
        return self._ready[1]

    def prepare(self, step: int) -> None:
        """Draws those of a step beforehand, if there is such a step."""
        if step < self.steps:
            self.at(step)

    def _drawn(self, step: int) -> list[Any]:
        with reproducible(RULES, self.seed, step, 0, self.device):  # the same in all processes
            drawn = architectures_of(self.rule, self.space, self.seed, step, step / self.steps)
            with hidden() if self._hides else nullcontext():
                held = [a for a in drawn if self.supernet.holds(a)] or drawn
        self._require_acyclic(held)
        return held

    def _require_acyclic(self, architectures: list[Any]) -> None:
        """Modules that refer to themselves outlive the cache until the collector finds them: it must see
        them then."""
        self._alive.update(map(self.supernet.skeleton, architectures))
        if self._hides and len(self._alive) > 2 * CACHED:
            sweep()
            self._hides = len(self._alive) > 2 * CACHED  # others use the cache as well
