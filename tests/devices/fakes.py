"""A small space and a device whose latencies are known, so that no test depends on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from nas.devices.costs import FEATURES
from nas.devices.timing import Timing


class Digits:
    """A space of six genes with values from 0 to 3; an architecture is the tuple of them."""

    genes = 6

    def smallest(self) -> tuple[int, ...]:
        return (0,) * self.genes

    def largest(self) -> tuple[int, ...]:
        return (3,) * self.genes

    def encode(self, architecture: tuple[int, ...]) -> np.ndarray:
        return np.array(architecture, dtype=np.int64)

    def decode(self, genes: np.ndarray) -> tuple[int, ...]:
        return tuple(int(gene) for gene in genes)

    def sample_genes(self, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 4, self.genes)

    def crossover(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.where(rng.random(self.genes) < 0.5, a, b)

    def id(self, architecture: tuple[int, ...]) -> str:
        return "".join(map(str, architecture))

    def to_json(self, architecture: tuple[int, ...]) -> list[int]:
        return list(architecture)


class Net(nn.Module):
    """Carries its latency in ms."""

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms = ms


OCTAVES = np.array([0.31, 0.17, 0.23, 1.1, 0.9, 1.3])
"""By how much a step of each gene enlarges the MACs, in powers of two."""


def features(genes: np.ndarray) -> np.ndarray:
    """Products grow with the first three genes, MACs by factors of 1.1 to 2.5 with each of all."""
    rows = np.zeros((len(genes), len(FEATURES)))
    rows[:, FEATURES.index("products")] = 1 + genes[:, :3].sum(axis=1)
    rows[:, FEATURES.index("products_mmacs")] = 0.01 * 2 ** (genes @ OCTAVES)
    return rows


def latency_ms(architecture: tuple[int, ...]) -> float:
    """0.02 ms a product and 0.1 ms a million of MACs."""
    (row,) = features(np.array([architecture]))
    products, mmacs = row[FEATURES.index("products")], row[FEATURES.index("products_mmacs")]
    return float(0.02 * products + 0.1 * mmacs)


@dataclass
class Host:
    """What the fake host does: `noise` in both passes, `slowdown` against the truth."""

    noise: float = 0.0
    slowdown: float = 1.0
    locked: bool = False
    folders: list[Path] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    def round_robin(self, runs: list[Callable[[], float]], *, rounds: int, seed: int) -> Timing:
        assert self.locked, "timing must hold the lock"
        rng = np.random.default_rng(seed)
        ms = np.array([run() for run in runs]) * self.slowdown
        ms *= rng.lognormal(0, self.noise, len(ms))
        anchor = float(np.exp(np.log(ms).mean()))
        return Timing(ms / anchor, 0.03 * ms / anchor, anchor)


@dataclass(frozen=True)
class FakeRuntime:
    """A runtime on the fake host."""

    host: Host
    threads: int = 2

    def prepare(self, module: nn.Module, example: Tensor, folder: Path) -> Callable[[], object]:
        assert isinstance(module, Net)
        self.host.folders.append(folder)

        def load() -> Callable[[], object]:
            self.host.loads.append(module.ms)
            return lambda: module.ms

        return load
