"""Which architectures a latency model is learnt from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nas.devices.costs import macs
from nas.errors import DeviceError

Floats = npt.NDArray[np.float64]
Genes = npt.NDArray[np.int64]

_POOL = 1000


class GeneSpace(Protocol):
    """The part of `nas.space.Space` that choosing needs."""

    def sample_genes(self, rng: np.random.Generator) -> Genes: ...
    def crossover(self, a: Genes, b: Genes, rng: np.random.Generator) -> Genes: ...


def choose(
    space: GeneSpace,
    ends: tuple[Genes, Genes],
    features: Callable[[Genes], Floats],
    n: int,
    *,
    seed: int = 0,
) -> Genes:
    """..."""
