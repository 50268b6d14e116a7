"""Objectives: what a search trades off, each with its unit and direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Objective:
    """A named figure of an architecture: ``Objective("latency_ms.pi4", "ms", "minimize")``.

    Figures of a device carry its name after a dot.
    """

    name: str
    unit: str
    direction: Direction

    @property
    def sign(self) -> int:
        """+1 where less is better, −1 where more is."""
        return 1 if self.direction == "minimize" else -1


def as_costs(objectives: Sequence[Objective], values: Sequence[Mapping[str, float]]) -> np.ndarray:
    """A matrix (n, objectives) in which less is better everywhere."""
    rows = [[o.sign * value[o.name] for o in objectives] for value in values]
    return np.array(rows, dtype=float).reshape(len(rows), len(objectives))
