"""The architectures of a step, and their skeletons, when they are wanted."""

from __future__ import annotations

from typing import Any

import torch

from nas.space import Space
from nas.supernet import Supernet
from nas.training.streams import RULES, reproducible
from nas.training.subnets import Subnets, architectures_of

DRAWS, ANOTHER = 100, 1_000_003
"""How often a step is drawn whose architectures ask for weights that the bank does not have, and what lies
between the seeds of two draws."""


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
        """Without those that ask for what hardly any other does, which the bank may lack."""
        with reproducible(RULES, self.seed, step, 0, self.device):  # the same in all processes
            for again in range(DRAWS):
                seed = self.seed + again * ANOTHER
                drawn = architectures_of(self.rule, self.space, seed, step, step / self.steps)
                held = [a for a in drawn if self.supernet.holds(a)]
                if held and (held[0] == drawn[0] or not self.rule.teaches):
                    return held
        return drawn  # whose weights will be missed, by name
