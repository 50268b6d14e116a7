"""A training step of a subnet in the supernet against one of the plain module of the same architecture.

Step: draw the architecture, forward, backward, clipping, AdamW; the supernet's is that of `nas.train`, with
its checks, its metrics and its streams of random numbers. Baseline: the extracted module with PyTorch's
AdamW, both made beforehand, in a bare loop. The supernet has a new architecture at every step, so its time
includes drawing it, building the skeleton and cutting the slices. Rows of steps take turns; ratios are per
row. Beside it the same for elastic layers, as AutoFormer has them (`elastic.py`), which compute the same,
bare too. Then the most bytes of tensors that live at one time in a step of the largest architecture, and
the share of a training that waits for batches.

    python -m experiments.benchmarks.supernet_step
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments import cifar10_small
from experiments.benchmarks import elastic
from experiments.benchmarks.results import FOLDER, summary, write
from nas.skeleton import skeleton_of
from nas.space import Space
from nas.supernet import Supernet
from nas.tasks import Batch, RandomCropFlip, digits, from_arrays
from nas.training import Alone, Recipe, SinglePath, frozen_heap, train
from nas.training.feed import Feed
from nas.training.guard import Guard
from nas.training.subnets import Only, Subnets
from nas.training.update import Update
from search_spaces import hierarchical

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROWS, STEPS = 16, 6
WARM = 1500  # architectures drawn before: a training soon knows which choices are legal
Step = Callable[[int], None]


class Images32:
    """The shape of CIFAR."""

    classes, image_shape = 10, (3, 32, 32)


def spaces() -> dict[str, tuple[Space, int]]:
    """With the batch size: of 0.1 to 5, of 0.2 to 4, of 7 to 103 MMACs, and AutoFormer's choices."""
    bits = (32,)
    widths = ((64, 96, 128), (128, 192, 256))
    larger = hierarchical.space(Images32, widths=widths, depths=(3, 5), heads=(4, 8, 16), bits=bits)
    return {
        "digits": (hierarchical.space(digits(), bits=bits), 64),
        "cifar10_small": (cifar10_small.space(Images32), 128),  # type: ignore[arg-type]
        "7 to 103 MMACs": (larger, 64),
        "ViT, 76 to 325 MMACs": (elastic.space(), 64),
    }


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with frozen_heap():  # as in training
        for name, (space, batch) in spaces().items():
            supernet, is_vit = Supernet(hierarchical.build, space), name.startswith("ViT")
            for way, found in ratios(supernet, batch, elastic_too=is_vit).items():
                title = f"{name}, batch {batch}: {way}"
                results[title] = found
                low, high = found["quartiles"]
                print(f"{title:<50} {found['median']:.3f}  (quartiles {low:.3f} to {high:.3f})", flush=True)
        memory = peak_memory()
    waiting = loader_waits()
    path = write(
        "supernet_step",
        {"ratio to the plain module": results, "peak memory": memory, "share of time waiting": waiting},
    )
    draw(results)
    print(f"written to {path}")


# --- steps ------------------------------------------------------------------------------------------


class Data:
    """A batch that all steps train on, and the architecture of each step."""

    def __init__(self, supernet: Supernet, batch: int, rule: Subnets) -> None:
        self.supernet, self.rule = supernet, rule
        channels, side = supernet.space.template.channels, 8 if supernet.space.template.channels == 1 else 32
        self.images, self.labels = torch.randn(batch, channels, side, side), torch.randint(10, (batch,))

    def architecture(self, step: int) -> Any:
        return self.rule.at(self.supernet.space, 0, step, 0.0)[0]


def of_supernet(data: Data) -> Step:
    """As `nas.training` makes it; loss and metric are those of any task of ten classes."""
    recipe = Recipe(subnets=data.rule, device="cpu", explosion=math.inf)
    feed = Feed(digits(), recipe, 0, Alone(), torch.device("cpu"))
    update = Update(data.supernet, feed.task, recipe, feed, Guard(recipe), steps=1 << 20)

    def run(step: int) -> None:
        update([Batch((data.images,), data.labels)], step)

    return run


def of_elastic(data: Data) -> Step:
    layers = elastic.with_weights(data.supernet)
    return plain_step(data, layers, lambda step: layers(data.images, data.architecture(step)))


def of_plain(data: Data, architectures: Sequence[Any]) -> Step:
    """Of a module for each of these, which are those of the steps 0, 1, …"""
    modules = [data.supernet.extract(a, quantized=False).train() for a in architectures]
    steps = [plain_step(data, m, lambda _, m=m: m(data.images)) for m in modules]  # type: ignore[misc]
    for step in steps:
        step(0)  # makes the moments
    return lambda step: steps[step](step)


def plain_step(data: Data, module: nn.Module, forward: Callable[[int], Tensor]) -> Step:
    matrices = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)

    def run(step: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(step), data.labels).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return run


def ratios(supernet: Supernet, batch: int, elastic_too: bool) -> dict[str, dict[str, Any]]:
    """Time of a row of steps of each way over that of the plain modules, row by row."""
    rng, data = np.random.default_rng(0), Data(supernet, batch, SinglePath())
    for _ in range(WARM):
        supernet.space.sample_genes(rng)
    ways = {"supernet": of_supernet(data)} | ({"elastic layers": of_elastic(data)} if elastic_too else {})
    found: dict[str, list[float]] = {way: [] for way in ways}
    for row in range(1, ROWS + 2):
        steps = range(row * STEPS, (row + 1) * STEPS)
        plain = of_plain(data, [data.architecture(step) for step in steps])
        order = [*ways, "plain"]
        seconds = {}
        for way in order[row % len(order) :] + order[: row % len(order)]:
            if way == "plain":
                seconds[way] = timed(plain, range(STEPS))
            else:
                skeleton_of.cache_clear()  # so that every architecture is a new one
                for step in (steps[0] - 2, steps[0] - 1):  # the second makes the first of the row ready
                    ways[way](step)
                seconds[way] = timed(ways[way], steps)
        for way in ways:
            found[way].append(seconds[way] / seconds["plain"])
    return {way: summary(np.array(rows[1:])) for way, rows in found.items()}


def timed(step: Step, steps: range) -> float:
    start = time.perf_counter()
    for i in steps:
        step(i)
    return time.perf_counter() - start


# --- memory and waiting -----------------------------------------------------------------------------


def peak_memory() -> dict[str, float]:
    """Most bytes of tensors in a step of the largest architecture beyond weights and moments, in MB, after a
    step that made these; and what a copy of the gradients would add."""
    space, batch = spaces()["ViT, 76 to 325 MMACs"]
    supernet = Supernet(hierarchical.build, space)
    data = Data(supernet, batch, Only(space.largest()))
    found = {
        "plain": peak_of(of_plain(data, [space.largest()])),
        "supernet": peak_of(of_supernet(data)),
        "elastic layers": peak_of(of_elastic(data)),
        "a copy of the gradients": sum(4 * p.numel() for p in supernet.parameters()) / 1e6,
    }
    for way, megabytes in found.items():
        print(f"peak memory of a step, {way:<24} {megabytes:8.1f} MB", flush=True)
    return found


def peak_of(step: Step) -> float:
    """Most bytes of tensors that a step holds at one time beyond what it began with, in MB."""
    step(0)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step(0)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return float(np.cumsum([e.nbytes() for e in events]).max()) / 1e6


def loader_waits() -> float:
    """Share of the time of a training that waits for its batches: cifar10_small's space, augmented."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12_000, 32, 32, 3), dtype=np.uint8)
    task = from_arrays(pixels, rng.integers(0, 10, 12_000), augment=RandomCropFlip(), batch_size=128)
    supernet = Supernet(hierarchical.build, cifar10_small.space(task))
    epochs: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        train(supernet, task, Recipe(epochs=1, threads=1), Path(folder), on_epoch=epochs.append)
    print(f"share of a training that waits for batches: {100 * epochs[0].waiting:.1f} %", flush=True)
    return float(epochs[0].waiting)


def draw(results: dict[str, Any]) -> None:
    figure, axes = plt.subplots(figsize=(9, 3.5))
    titles = list(results)[::-1]
    middles = [results[t]["median"] for t in titles]
    spans = np.array([results[t]["quartiles"] for t in titles]).T
    axes.barh(titles, middles, xerr=np.abs(spans - middles), color="#4c78a8")
    axes.axvline(1.0, color="black", linewidth=1)
    axes.axvline(1.05, color="#e45756", linewidth=1, linestyle="--")
    axes.set_xlabel("training step relative to the plain module's (one thread; dashed: the aim)")
    figure.tight_layout()
    figure.savefig(FOLDER / "supernet_step.png", dpi=120)


if __name__ == "__main__":
    main()
