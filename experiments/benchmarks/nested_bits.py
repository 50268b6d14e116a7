"""Do 8, 4 and 2 bits lose by being leading bits of one number, and gain by scales that learn? On CIFAR-10.

    python -m experiments.benchmarks.nested_bits DATA [share/shares]

The space of `cifar10_small` with weights of 2, 4 or 8 bits in every mixer and channel mixer, trained in three
ways: each width with a scale of its own (4 and 2 bits by group of 32); all nested in one of 8 bits, with
a scale by group (Nair et al., 2025); each with a learned scale (Esser et al., 2020). All train `EPOCHS`
epochs of one subnet a step, so that each width is updated as often; three seeds. Judged are the same 24
architectures with all parts at 8, at 4, at 2 bits. DATA is as of `cifar10_small`. Pieces, shares and raw
predictions as in `mixing.py`, in results/nested_bits/.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from experiments import cifar10_small
from experiments.benchmarks.pieces import Piece, interval, predictions, resampled, select, share_of
from experiments.benchmarks.results import FOLDER, between_marks, table, write
from nas.quantize import Quantization
from nas.space import Space
from nas.supernet import Supernet
from nas.tasks import ImageClassification
from nas.training import Recipe, train
from search_spaces import hierarchical

EPOCHS, SEEDS, RESAMPLES = 60, (0, 1, 2), 2000
WIDTHS = (8, 4, 2)
PANEL, IMAGES = 24, 2000
OWN, NESTED, LEARNED = "a scale of its own", "nested", "a learned scale"
ARMS = {OWN: Quantization(), NESTED: Quantization(nested=True), LEARNED: Quantization(learned=True)}
RAW = FOLDER / "nested_bits"
PIECES = [(arm, seed) for seed in SEEDS for arm in ARMS]
PAGE = FOLDER.parent.parent / "docs" / "bits.md"


def main(data: str, share: str = "") -> None:
    torch.set_num_threads(1)
    task = cifar10_small.cifar10(data)
    for arm, seed in share_of(PIECES, share):
        if not _file(arm, seed).exists():
            piece(task, arm, seed)
    if not share:
        report(task)


def piece(task: ImageClassification, arm: str, seed: int) -> None:
    """Trains one supernet and keeps what its panel says at each width."""
    supernet = Supernet(hierarchical.build, space(task), quantization=ARMS[arm], seed=seed)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        train(supernet, task, Recipe(epochs=EPOCHS, device="cpu", threads=1), Path(folder), seed=seed)
    seconds = time.process_time() - start
    at = {f"{bits} bits": panel(supernet.space, bits) for bits in WIDTHS}
    classes = {name: predictions(supernet, architectures, task, IMAGES) for name, architectures in at.items()}
    Piece.write(_file(arm, seed), {"epochs": EPOCHS, "core_seconds": seconds}, classes)
    print(f"{arm} {seed}: {seconds:.0f} core-seconds", flush=True)


def space(task: ImageClassification | cifar10_small.Images) -> Space:
    """That of `cifar10_small`, at few bits."""
    return hierarchical.space(
        task,
        widths=((16, 24, 32), (32, 48, 64)),
        depths=(1, 3),
        mixers=cifar10_small.MIXERS,
        ratios=(0.5, 1, 2),
        bits=tuple(sorted(WIDTHS)),
        patch=4,
    )


def panel(space: Space, bits: int) -> list[Any]:
    """The same architectures for all, with all parts at so many bits."""
    rng = np.random.default_rng(7)
    columns = [i for i, gene in enumerate(space.genes) if gene.name.endswith("bits.weight")]
    genes = np.array([space.sample_genes(rng) for _ in range(PANEL)])
    genes[:, columns] = np.where(genes[:, columns] >= 0, sorted(WIDTHS).index(bits), 0)
    return [space.decode(space.encode(space.decode(row))) for row in genes]


# --- what all of them say -------------------------------------------------------------------------


def report(task: ImageClassification) -> None:
    np.save(RAW / "labels.npy", task.labels[select(task)].astype(np.uint8))
    results = evaluated(read())
    for name, value in results.items():
        print(f"{name}: {json.dumps(value)}")
    draw(results)
    print(f"written to {write('nested_bits', results)}")
    PAGE.write_text(with_table(PAGE.read_text(), results))


def read() -> dict[tuple[str, int], Piece]:
    labels = np.load(RAW / "labels.npy", allow_pickle=False)
    return {(a, s): Piece.read(_file(a, s), labels) for a, s in PIECES}


ACCURACY = "mean accuracy of the panel, %"


def evaluated(pieces: dict[tuple[str, int], Piece]) -> dict[str, Any]:
    """Every figure, from the raw predictions alone."""

    def mean(arm: str, bits: int) -> Callable[[int, np.ndarray | None], float]:
        return lambda seed, counts: float(pieces[arm, seed].accuracies(f"{bits} bits", counts).mean())

    def difference(arm: str, bits: int) -> dict[str, Any]:
        one, other = mean(arm, bits), mean(OWN, bits)
        found = np.mean([one(s, None) - other(s, None) for s in SEEDS])
        drawn = resampled(IMAGES, len(SEEDS), RESAMPLES)
        return interval(
            np.array([found, *(np.mean([one(s, c) - other(s, c) for s in seeds]) for seeds, c in drawn)])
        )

    return {
        ACCURACY: {
            arm: {str(b): [round(mean(arm, b)(s, None), 3) for s in SEEDS] for b in WIDTHS} for arm in ARMS
        },
        "difference to a scale of its own, points": {
            arm: {str(b): difference(arm, b) for b in WIDTHS} for arm in (NESTED, LEARNED)
        },
        "core-seconds": {arm: [round(pieces[arm, s].figures["core_seconds"]) for s in SEEDS] for arm in ARMS},
        "settings": {"epochs": EPOCHS, "panel": PANEL, "images": IMAGES, "resamples": RESAMPLES},
    }


def with_table(page: str, results: dict[str, Any]) -> str:
    """`page` with mean accuracies, and differences with their intervals."""

    def cell(arm: str, bits: int) -> str:
        mean = f"{np.mean(results[ACCURACY][arm][str(bits)]):.1f}"
        if arm == OWN:
            return mean
        found = results["difference to a scale of its own, points"][arm][str(bits)]
        low, high = found["interval_95"]
        return f"{mean} ({found['mean']:+.1f}, {low:+.1f} to {high:+.1f})"

    columns = ("scales", *(f"{bits} bits" for bits in WIDTHS), "core-seconds")
    rows = [
        (arm, *(cell(arm, bits) for bits in WIDTHS), f"{np.mean(results['core-seconds'][arm]):.0f}")
        for arm in ARMS
    ]
    return between_marks(page, "python -m experiments.benchmarks.nested_bits DATA", table(columns, rows))


def draw(results: dict[str, Any]) -> None:
    """results/nested_bits.png."""
    figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    for i, arm in enumerate(ARMS):
        values = np.array([results[ACCURACY][arm][str(bits)] for bits in WIDTHS])
        x = np.arange(len(WIDTHS)) + 0.22 * (i - 1)
        axis.bar(x, values.mean(1), 0.2, label=arm)
        axis.plot(np.repeat(x, len(SEEDS)), values.ravel(), "k.", ms=3)
    axis.set(ylabel="accuracy of the panel, %", xticks=range(len(WIDTHS)))
    axis.set_xticklabels([f"{bits} bits" for bits in WIDTHS])
    axis.set_ylim(bottom=0.8 * min(np.min(list(v.values())) for v in results[ACCURACY].values()))
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(FOLDER / "nested_bits.png", dpi=150)


def _file(arm: str, seed: int) -> Path:
    return RAW / f"{arm.replace(' ', '_')}-{seed}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
