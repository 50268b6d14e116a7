"""Forward + backward of a subnet in the supernet against the plain module of the same architecture.

Baseline: the extracted module, built beforehand. The supernet sees a new architecture at every step, so
its time includes building the skeleton and cutting the slices. Steps alternate; ratios are per pair.

    python -m experiments.benchmarks.supernet_step
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.benchmarks.results import FOLDER, summary, write
from nas.supernet import Supernet
from nas.tasks import digits
from search_spaces import hierarchical

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAIRS = 60


def main() -> None:
    torch.set_num_threads(1)
    task = digits()
    space = hierarchical.space(task, bits=(32,))
    supernet = Supernet(hierarchical.build, space)
    rng = np.random.default_rng(0)
    fresh = [space.sample(rng) for _ in range(PAIRS)]
    by_size = sorted(fresh, key=supernet.parameters_of)
    named = {"largest": space.largest(), "median": by_size[PAIRS // 2], "smallest": space.smallest()}
    results: dict[str, Any] = {
        f"batch {batch}, a new architecture every step": ratios(supernet, fresh, batch) for batch in (64, 16)
    }
    for title, architecture in named.items():
        results[f"batch 1, {title}"] = ratios(supernet, [architecture] * PAIRS, 1)
    for title, found in results.items():
        print(f"{title:<44} {found['median']:.3f}  (quartiles {found['quartiles']})")
    path = write("supernet_step", {"ratio to the plain module": results})
    draw(results)
    print(f"written to {path}")


def ratios(supernet: Supernet, architectures: list[Any], batch: int) -> dict[str, Any]:
    """Time of the supernet over time of the plain module, pair by pair, in turn first and second."""
    x, y = torch.randn(batch, 1, 8, 8), torch.randint(10, (batch,))
    found = []
    for i, architecture in enumerate([*architectures[:5], *architectures]):
        plain = supernet.extract(architecture, quantized=False).train()
        pair: list[Callable[[], float]] = [
            lambda a=architecture: timed(lambda images: supernet(a, images, train=True), x, y),  # type: ignore[misc]
            lambda m=plain: timed(m, x, y),  # type: ignore[misc]
        ]
        if architectures[0] is not architectures[-1]:
            forget()
        order = (0, 1) if i % 2 else (1, 0)
        seconds = {k: pair[k]() for k in order}
        for parameter in supernet.parameters():
            parameter.grad = None
        found.append(seconds[0] / seconds[1])
    return summary(np.array(found[5:]))


def forget() -> None:
    """Drops cached skeletons, so that every architecture is a new one."""
    from nas.supernet import _skeleton

    _skeleton.cache_clear()


def timed(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    start = time.perf_counter()
    F.cross_entropy(forward(x), y).backward()
    return time.perf_counter() - start


def draw(results: dict[str, Any]) -> None:
    figure, axes = plt.subplots(figsize=(8, 3))
    titles = list(results)[::-1]
    middles = [results[t]["median"] for t in titles]
    spans = np.array([results[t]["quartiles"] for t in titles]).T
    axes.barh(titles, middles, xerr=np.abs(spans - middles), color="#4c78a8")
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("time relative to the plain module (forward + backward, one thread)")
    figure.tight_layout()
    figure.savefig(FOLDER / "supernet_step.png", dpi=120)


if __name__ == "__main__":
    main()
