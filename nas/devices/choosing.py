"""Which architectures a latency model is learnt from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nas.devices.costs import macs
from nas.errors import DeviceError

Floats = npt.NDArray[np.float64]
Genes = npt.NDArray[np.int64]

_POOL = 100


class SampledSpace(Protocol):
    """What choosing asks of a space; `nas.space.Space` is one."""

    def smallest(self) -> Any: ...
    def largest(self) -> Any: ...
    def encode(self, architecture: Any) -> Genes: ...
    def decode(self, genes: Genes) -> Any: ...
    def sample_genes(self, rng: np.random.Generator) -> Genes: ...
    def crossover(self, a: Genes, b: Genes, rng: np.random.Generator) -> Genes: ...


def choose(space: SampledSpace, features: Callable[[Genes], Floats], n: int, seed: int = 0) -> list[Any]:
    """The smallest architecture, the largest, and others that cover the range of MACs between them.

    Random architectures gather in the middle of the range, a search goes to its ends. So the pool
    holds, for each random architecture, a cross of it with the smallest or the largest; from each of
    n - 2 equal intervals of log MACs one is drawn.

    Args:
        space: the space to choose from.
        features: costs (m, F) of genes (m, G), see `nas.devices.costs`.
        n: how many; fewer are returned where the space holds fewer.
        seed: of the draw.

    Raises:
        DeviceError: fewer than two are asked for.
    """
    if n < 2:
        raise DeviceError(f"A profile needs the smallest and the largest subnet: got n={n}.")
    rng = np.random.default_rng(seed)
    ends = np.stack([space.encode(space.smallest()), space.encode(space.largest())])
    random = [space.sample_genes(rng) for _ in range(_POOL)]
    crosses = [space.crossover(a, ends[i % 2], rng) for i, a in enumerate(random)]
    pool = [genes for genes in np.unique([*random, *crosses], axis=0) if not _among(genes, ends)]
    others = _spread(macs(features(np.stack(pool))), n - 2, rng) if pool else []
    chosen = [*np.unique(ends, axis=0), *(pool[i] for i in others)]
    return [space.decode(genes) for genes in chosen]


def _among(genes: Genes, rows: Genes) -> bool:
    return bool((genes == rows).all(axis=1).any())


def _spread(mmacs: Floats, n: int, rng: np.random.Generator) -> list[int]:
    """Indices of n of `mmacs`: one from each interval of their logarithm, then any."""
    size = np.log(np.maximum(mmacs, 1e-9))
    position = (size - size.min()) / max(float(np.ptp(size)), 1e-9)  # 0 to 1
    interval = np.minimum((position * n).astype(int), n - 1)
    order = rng.permutation(len(mmacs)).tolist()
    first: dict[int, int] = {}
    for i in order:
        first.setdefault(int(interval[i]), i)
    drawn = set(first.values())
    return [*first.values(), *(i for i in order if i not in drawn)][:n]
