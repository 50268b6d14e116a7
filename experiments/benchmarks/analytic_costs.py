"""Figures of 100,000 random architectures on one core, against whole modules counted one by one.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.analytic_costs

*Cold* is the first call on a space, which traces every piece; *warm* the next one, on other architectures.
The baseline builds each architecture without weights and traces it, as `nas.devices.count` and `memory` do:
what one would write without pieces. It is timed on `COUNTED` of the same architectures, and scaled up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import torch

from experiments import every_mixer
from experiments.benchmarks.results import FOLDER, write
from nas.devices.costs import count, macs
from nas.devices.memory import memory
from nas.space import Space
from nas.tasks import digits
from search_spaces import costs, hierarchical

matplotlib.use("Agg")
import matplotlib.pyplot as plt

N = 100_000
COUNTED = 100
SIDE = every_mixer.SIDE


def main() -> None:
    torch.set_num_threads(1)
    task = digits()
    spaces = {
        "digits": hierarchical.space(task),
        "every mixer": every_mixer.space(task, every_mixer.MIXERS, every_mixer.FFNS),
    }
    results = {name: measured(name, space) for name, space in spaces.items()}
    draw(results)
    print(f"written to {write('analytic_costs', results)}")


def measured(name: str, space: Space) -> dict[str, Any]:
    """Core-seconds per `N` architectures."""
    rng = np.random.default_rng(0)
    genes, sampling = _timed(lambda: np.array([space.sample_genes(rng) for _ in range(N)]))
    others = np.array([space.sample_genes(rng) for _ in range(N)])
    figures = costs.figures(space, SIDE)
    table, cold = _timed(lambda: figures(genes))
    _, warm = _timed(lambda: figures(others))
    architectures = [space.decode(row) for row in genes[:COUNTED]]
    whole, counting = _timed(lambda: np.array([on_whole(a) for a in architectures]))
    columns = [costs.FIGURES.index(f) for f in ("parameters", "mmacs", "activation_bytes", "peak_bytes")]
    found = {
        "genes": len(space.genes),
        "architectures": N,
        "distinct": len(np.unique(genes, axis=0)),
        "sampling_seconds": sampling,
        "cold_seconds": cold,
        "warm_seconds": warm,
        "whole_modules_seconds": counting * N / COUNTED,
        "whole_modules_counted": COUNTED,
        "largest_relative_difference": float(np.abs(table[:COUNTED, columns] / whole - 1).max()),
    }
    print(name, {k: round(v, 3) if v > 1e-3 else v for k, v in found.items()}, flush=True)
    return found


def on_whole(architecture: Any) -> list[float]:
    """Parameters, 10^6 multiply-accumulates, activation and peak bytes of the whole module."""
    with torch.device("meta"):
        module = hierarchical.build(architecture)
    image = torch.empty(1, architecture.channels, SIDE, SIDE)
    parameters = sum(p.numel() for p in module.parameters())
    return [parameters, float(macs(count(module, image))), *memory(module, image)]


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the core-seconds it took."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def draw(results: dict[str, dict[str, Any]]) -> None:
    """results/analytic_costs.png."""
    ways = {
        "whole modules, one by one (scaled up)": "whole_modules_seconds",
        "by pieces, first call": "cold_seconds",
        "by pieces, next call": "warm_seconds",
        "sampling the architectures": "sampling_seconds",
    }
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    y = np.arange(len(ways))
    for i, (name, found) in enumerate(results.items()):
        seconds = [found[way] for way in ways.values()]
        bars = axes.barh(y + 0.4 * i, seconds, 0.38, label=name)
        axes.bar_label(bars, [f"{s:,.1f} s" for s in seconds], padding=3, fontsize=8)
    axes.set(xscale="log", xlabel=f"core-seconds per {N:,} architectures", yticks=y + 0.2, yticklabels=ways)
    axes.set_xlim(right=30 * max(found["whole_modules_seconds"] for found in results.values()))
    axes.invert_yaxis()
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    figure.savefig(FOLDER / "analytic_costs.png", dpi=150)


if __name__ == "__main__":
    main()
