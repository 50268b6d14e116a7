"""Which subnets a training step trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nas.space import Space


class Subnets(Protocol):
    """A rule: the architectures of a step, the same for the same (seed, step); the first one teaches."""

    def at(self, space: Space, seed: int, step: int) -> list[Any]: ...


@dataclass(frozen=True)
class Sandwich:
    """The largest, the smallest and `random` subnets drawn anew (Yu & Huang, 2019, §3.2)."""

    random: int = 2

    def at(self, space: Space, seed: int, step: int) -> list[Any]:
        rng = np.random.default_rng((seed, step))
        drawn = [space.sample(rng) for _ in range(self.random)]
        return [space.largest(), space.smallest(), *drawn]
