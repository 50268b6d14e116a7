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
from nas.space import Space
from nas.supernet import Supernet
from nas.tasks import digits
from nas.training import frozen_heap
from search_spaces import hierarchical

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAIRS = 40


class Images32:
    """The shape of CIFAR: what the larger space is sized for."""

    classes, image_shape = 10, (3, 32, 32)


def spaces() -> dict[str, Space]:
    """That of the main job (0.1 to 5 MMACs), and one of 7 to 103 MMACs."""
    bits = (32,)
    widths = ((64, 96, 128), (128, 192, 256))
    larger = hierarchical.space(Images32, widths=widths, depths=(3, 5), heads=(4, 8, 16), bits=bits)
    return {"digits": hierarchical.space(digits(), bits=bits), "32×32 images": larger}


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with frozen_heap():  # as in training
        for name, space in spaces().items():
            supernet = Supernet(hierarchical.build, space)
            rng = np.random.default_rng(0)
            fresh = [space.sample(rng) for _ in range(PAIRS)]
            for batch in (64, 16) if name == "digits" else (64,):
                title = f"{name}, batch {batch}, new architectures"
                results[title] = report(title, ratios(supernet, fresh, batch))
            by_size = sorted(fresh, key=supernet.parameters_of)
            named = {"largest": space.largest(), "median": by_size[PAIRS // 2], "smallest": space.smallest()}
            for size, architecture in named.items():
                title = f"{name}, batch 1, {size}"
                results[title] = report(title, ratios(supernet, [architecture] * PAIRS, 1))
    path = write("supernet_step", {"ratio to the plain module": results})
    draw(results)
    print(f"written to {path}")


def report(title: str, found: dict[str, Any]) -> dict[str, Any]:
    low, high = found["quartiles"]
    print(f"{title:<42} {found['median']:.3f}  (quartiles {low:.3f} to {high:.3f})", flush=True)
    return found


def ratios(supernet: Supernet, architectures: list[Any], batch: int) -> dict[str, Any]:
    """Time of the supernet over time of the plain module, pair by pair, in turn first and second."""
    channels, side = supernet.space.template.channels, 8 if supernet.space.template.channels == 1 else 32
    x, y = torch.randn(batch, channels, side, side), torch.randint(10, (batch,))
    found = []
    for i, architecture in enumerate([*architectures[:3], *architectures]):
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
    return summary(np.array(found[3:]))


def forget() -> None:
    """Drops cached skeletons, so that every architecture is a new one."""
    from nas.supernet import _skeleton

    _skeleton.cache_clear()


def timed(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    start = time.perf_counter()
    F.cross_entropy(forward(x), y).backward()
    return time.perf_counter() - start


def draw(results: dict[str, Any]) -> None:
    figure, axes = plt.subplots(figsize=(9, 4))
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
