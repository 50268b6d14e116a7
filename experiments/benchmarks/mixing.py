"""Does mixing pay? One supernet over five mixers against five supernets of one mixer each, on CIFAR-10.

    python -m experiments.benchmarks.mixing DATA [folder of pieces [share/shares]]

DATA is what `experiments/cifar10_small.py` takes. Every supernet gets the epochs that are to take `BUDGET`
core-seconds, all passes of all subnets counted, by one timing of all in turn (what each took is in the
results), and is searched with as many evaluations. Fronts are chosen on
*search* and compared on *select*: hypervolume of accuracy against multiply-accumulates on `SCALE`, with a
bootstrap over seeds and images. A seventh supernet has one mixer more: what does that cost the others?

The work falls into pieces, one a supernet, that are done once: `0/2` and `1/2` of them may run side by side
(one thread each). The call without a share does what is left and writes the results. Raw predictions, from
which every figure can be had again, lie in results/mixing/.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from experiments import cifar10_small
from experiments.benchmarks.results import FOLDER, write
from nas.evaluation import statistics, subnet_accuracy
from nas.executor import SerialExecutor
from nas.layers import Mixer
from nas.layers.mixers.channel import Channel
from nas.log import TrialLog
from nas.objectives import Objective, as_costs
from nas.pareto import Scale, crowding_distance, hypervolume, nondominated
from nas.searchers import NSGA2
from nas.space import Additive
from nas.study import Study
from nas.supernet import Supernet
from nas.tasks import ImageClassification
from nas.threads import cpu_threads
from nas.training import Recipe, train
from nas.trial import Candidate, Evaluation, Trial
from search_spaces import costs, hierarchical

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Stated before the first run.
BUDGET = 240.0  # core-seconds of training a supernet
SEEDS = (0, 1, 2)
SCALE = Scale(ideal=(-75.0, 0.2), nadir=(-30.0, 4.0))  # −accuracy in %, MMACs
EVALUATIONS, SEARCHED = 200, 2000  # of a search, and images of *search* in each
FINALISTS = 12
DRAWN, DRAWN_IMAGES = 12, 2000  # random subnets a space, and images of *select*, for the cost of sharing
RESAMPLES = 2000

SINGLES: dict[str, tuple[Mixer, ...]] = {type(m).__name__: (m,) for m in cifar10_small.MIXERS}
MIXED, ONE_MORE = "mixed", "one more"
ARMS = SINGLES | {
    MIXED: cifar10_small.MIXERS,
    ONE_MORE: (Channel(**cifar10_small.HEADS), *cifar10_small.MIXERS),  # the last one's largest teaches
}
PIECES = [(arm, seed) for seed in SEEDS for arm in ARMS]
OBJECTIVES = (Objective("accuracy", "%", "maximize"), Objective("mmacs", "10^6", "minimize"))


def main(data: str, folder: str = "runs/mixing", share: str = "") -> None:
    torch.set_num_threads(1)
    task = cifar10_small.cifar10(data).fewer(search=SEARCHED)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    first, shares = map(int, share.split("/")) if share else (0, 1)
    for arm, seed in PIECES[first::shares]:
        if not (path / _file(arm, seed)).exists():
            piece(task, arm, seed, path)
    if not share:
        report(task, path)


# --- one supernet -------------------------------------------------------------------------------


def piece(task: ImageClassification, arm: str, seed: int, folder: Path) -> None:
    """Trains, searches and judges one supernet; writes its predictions."""
    space = cifar10_small.space(task, ARMS[arm])
    recipe = Recipe(epochs=epochs(task, folder)[arm], device="cpu", threads=1)
    place = folder / f"{arm}-{seed}"
    start = time.process_time()
    supernet = train(Supernet(hierarchical.build, space, seed=seed), task, recipe, place, seed=seed)
    trained = time.process_time()
    trials = front(supernet, task, place, seed)
    searched = time.process_time()
    rows = {"select": [predictions(supernet, t.architecture, task, len(select(task))) for t in trials]}
    for name, mixers in (SINGLES | {MIXED: ARMS[MIXED]}).items():
        if set(mixers) <= set(ARMS[arm]):
            drawn = draws(task, mixers)
            rows[f"drawn {name}"] = [predictions(supernet, a, task, DRAWN_IMAGES) for a in drawn]
    accuracies = [t.objectives["accuracy"] for t in trials]
    figures = {
        "epochs": recipe.epochs,
        "core_seconds": {"training": trained - start, "search": searched - trained},
        "mmacs": [t.objectives["mmacs"] for t in trials],
        "search_accuracy": accuracies,
        "architectures": [space.to_json(t.architecture) for t in trials],
    }
    arrays: dict[str, Any] = {name: packed(np.array(row)) for name, row in rows.items()}
    temporary = folder / f"{arm}-{seed}.tmp"
    with open(temporary, "wb") as file:
        np.savez_compressed(file, figures=np.array(json.dumps(figures)), **arrays)
    os.replace(temporary, folder / _file(arm, seed))
    spent = f"{trained - start:.0f} + {searched - trained:.0f} core-seconds"
    print(f"{arm} {seed}: {recipe.epochs} epochs, {spent}, {max(accuracies):.1f} %", flush=True)


@cache
def epochs(task: ImageClassification, folder: Path) -> dict[str, int]:
    """How many epochs each supernet gets for `BUDGET`: all of them timed in turn, once for all."""
    path = folder / "epochs.json"
    if not path.exists():
        few = task.fewer(train=20 * task.batch_size)
        seconds = np.array([[_seconds(few, arm) for arm in ARMS] for _ in range(3)])[1:].mean(0)
        an_epoch = seconds * len(task.splits["train"]) / len(few.splits["train"])
        found = {arm: max(1, round(BUDGET / s)) for arm, s in zip(ARMS, an_epoch, strict=True)}
        path.write_text(json.dumps(found))
    known: dict[str, int] = json.loads(path.read_text())
    return known


def _seconds(task: ImageClassification, arm: str) -> float:
    """Core-seconds of one more epoch: what is done but once is a small part of a whole training."""
    space = cifar10_small.space(task, ARMS[arm])
    spent = []
    for n in (1, 3):
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            recipe = Recipe(epochs=n, device="cpu", threads=1)
            train(Supernet(hierarchical.build, space), task, recipe, Path(folder))
            spent.append(time.process_time() - start)
    return (spent[1] - spent[0]) / 2


@dataclass(frozen=True)
class Judge:
    """Accuracy on *search* and MMACs of a candidate."""

    supernet: Supernet
    task: ImageClassification
    figures: Additive

    def __call__(self, candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
        tally = subnet_accuracy(self.supernet, candidate.architecture, self.task, "search")
        mmacs = self.mmacs([candidate.architecture])[0]
        return Evaluation({"accuracy": tally.mean, "mmacs": mmacs}, tally.n, tally.std_error)

    def mmacs(self, architectures: Sequence[Any]) -> np.ndarray:
        genes = np.array([self.supernet.space.encode(a) for a in architectures])
        return self.figures(genes)[:, costs.FIGURES.index("mmacs")]


def front(supernet: Supernet, task: ImageClassification, folder: Path, seed: int) -> list[Trial]:
    """The non-dominated trials of a search, at most `FINALISTS` of them."""
    space = supernet.space
    judge = Judge(supernet, task, costs.figures(space, task.image_shape[-1]))
    study = Study(
        "nsga2",
        space,
        OBJECTIVES,
        NSGA2(space, OBJECTIVES, seed=seed),
        SerialExecutor(judge),
        TrialLog(folder / "trials.jsonl", space),
        trials=EVALUATIONS,
        parallel=1,
        weights="here",
    )
    trials = study.run()
    found = as_costs(OBJECTIVES, [t.objectives for t in trials])
    best = np.flatnonzero(nondominated(found))
    widest = np.argsort(-crowding_distance(found[best]), kind="stable")[:FINALISTS]
    return [trials[i] for i in sorted(best[widest], key=lambda i: float(found[i, 1]))]


def draws(task: ImageClassification, mixers: Sequence[Mixer]) -> list[Any]:
    """The same random architectures of a space for every supernet that holds them."""
    space, rng = cifar10_small.space(task, mixers), np.random.default_rng(0)
    return [space.sample(rng) for _ in range(DRAWN)]


def predictions(supernet: Supernet, architecture: Any, task: ImageClassification, n: int) -> np.ndarray:
    """Classes of the first `n` images of *select*, uint8 (n,)."""
    buffers = statistics(supernet, architecture, task)
    found: list[np.ndarray] = []
    with torch.inference_mode(), cpu_threads(1):
        for batch in replace(task, splits=dict(task.splits) | {"select": select(task)[:n]}).batches("select"):
            found.append(supernet(architecture, *batch.inputs, buffers=buffers).argmax(-1).numpy())
    return np.concatenate(found).astype(np.uint8)


def select(task: ImageClassification) -> np.ndarray:
    """Indices of *select* in a random order: the files may go by class."""
    order: np.ndarray = np.random.default_rng(0).permutation(task.splits["select"])
    return order


# --- raw predictions, two to a byte ---------------------------------------------------------------


def packed(classes: np.ndarray) -> np.ndarray:
    """(n, images) of 0 … 15, to (n, images / 2)."""
    packed: np.ndarray = classes[:, ::2] << 4 | classes[:, 1::2]
    return packed


def unpacked(packed: np.ndarray) -> np.ndarray:
    """What `packed` packed."""
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(len(packed), -1)


@dataclass(frozen=True)
class Piece:
    """What is known of one supernet: figures, and which predictions on *select* are right."""

    figures: dict[str, Any]
    right: np.ndarray  # bool (finalists, images)
    drawn: dict[str, np.ndarray]  # by space, bool (architectures, images)

    @classmethod
    def read(cls, file: Path, labels: np.ndarray) -> Piece:
        with np.load(file, allow_pickle=False) as data:
            rows = {name: unpacked(data[name]) for name in data.files if name != "figures"}
            figures = json.loads(str(data["figures"]))
        right = {name: row == labels[: row.shape[1]] for name, row in rows.items()}
        return cls(figures, right.pop("select"), {n.removeprefix("drawn "): r for n, r in right.items()})

    def hypervolume(self, counts: np.ndarray) -> float:
        """Of the finalists, where each image counts so many times, (images,)."""
        accuracies = 100 * self.right @ counts / counts.sum()
        return hypervolume(np.stack([-accuracies, self.figures["mmacs"]], 1), SCALE)


Pieces = Mapping[tuple[str, int], Piece]


# --- what all of them say -------------------------------------------------------------------------


def report(task: ImageClassification, folder: Path) -> None:
    raw = FOLDER / "mixing"
    raw.mkdir(parents=True, exist_ok=True)
    for arm, seed in PIECES:
        shutil.copyfile(folder / _file(arm, seed), raw / _file(arm, seed))
    np.save(raw / "labels.npy", task.labels[select(task)].astype(np.uint8))
    pieces = read(raw)
    draw(pieces)
    results = evaluated(pieces)
    for name, value in results.items():
        print(f"{name}: {json.dumps(value)}")
    print(f"written to {write('mixing', results)}")


def read(raw: Path) -> Pieces:
    labels = np.load(raw / "labels.npy", allow_pickle=False)
    return {(arm, seed): Piece.read(raw / _file(arm, seed), labels) for arm, seed in PIECES}


def evaluated(pieces: Pieces) -> dict[str, Any]:
    """Every figure, from the raw predictions alone."""
    n = pieces[MIXED, 0].right.shape[1]
    every = np.ones(n)
    volumes = {arm: [pieces[arm, s].hypervolume(every) for s in SEEDS] for arm in ARMS}
    searched = {arm: np.mean([_searched(pieces[arm, s]) for s in SEEDS]) for arm in ARMS}
    best = max(SINGLES, key=lambda arm: searched[arm])  # chosen without *select*
    return {
        "hypervolume on select": volumes,
        "best single mixer, by search": best,
        "mixed - best single": _interval(_differences(pieces, MIXED, best)),
        "mixed - each single": {arm: _interval(_differences(pieces, MIXED, arm)) for arm in SINGLES},
        "one more - mixed": _interval(_differences(pieces, ONE_MORE, MIXED)),
        "best accuracy on select, %": {
            arm: [100 * float(pieces[arm, s].right.mean(1).max()) for s in SEEDS] for arm in ARMS
        },
        "what sharing costs a mixer, points (mixed - alone)": {
            arm: _interval(_points(pieces, MIXED, arm, arm)) for arm in SINGLES
        },
        "what one more costs the others, points (one more - mixed)": {
            name: _interval(_points(pieces, ONE_MORE, MIXED, name)) for name in (*SINGLES, MIXED)
        },
        "mixers on the mixed front": _counted(pieces),
        "epochs": {arm: pieces[arm, 0].figures["epochs"] for arm in ARMS},
        "core-seconds of training": {
            arm: [round(pieces[arm, s].figures["core_seconds"]["training"]) for s in SEEDS] for arm in ARMS
        },
        "settings": {
            "budget_core_seconds": BUDGET,
            "scale": {"ideal": SCALE.ideal, "nadir": SCALE.nadir},
            "evaluations": EVALUATIONS,
            "images": {"search": SEARCHED, "select": n, "drawn": DRAWN_IMAGES},
        },
    }


def _searched(piece: Piece) -> float:
    figures = piece.figures
    costs_of = np.stack([-np.array(figures["search_accuracy"]), figures["mmacs"]], 1)
    return hypervolume(costs_of, SCALE)


def _resampled(images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Seeds, and how often each image was drawn, both with replacement (a bootstrap of both levels)."""
    rng = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        drawn = rng.integers(images, size=images)
        yield rng.integers(len(SEEDS), size=len(SEEDS)), np.bincount(drawn, minlength=images)


def _differences(pieces: Pieces, arm: str, other: str) -> np.ndarray:
    """Mean difference in hypervolume over seeds: the one found, then those of resamples."""
    n = pieces[arm, 0].right.shape[1]

    def difference(seeds: np.ndarray, counts: np.ndarray) -> float:
        pairs = [(pieces[arm, SEEDS[s]], pieces[other, SEEDS[s]]) for s in seeds]
        return float(np.mean([a.hypervolume(counts) - b.hypervolume(counts) for a, b in pairs]))

    found = difference(np.arange(len(SEEDS)), np.ones(n))
    return np.array([found, *(difference(seeds, counts) for seeds, counts in _resampled(n))])


def _points(pieces: Pieces, arm: str, other: str, space: str) -> np.ndarray:
    """Mean difference in accuracy of the same random subnets, in points, as `_differences`."""
    pairs = [(pieces[arm, s].drawn[space], pieces[other, s].drawn[space]) for s in SEEDS]
    by_image = 100 * np.array([a.mean(0) - b.mean(0) for a, b in pairs])  # (seeds, images)
    n = by_image.shape[1]
    resamples = (by_image[seeds].mean(0) @ counts / n for seeds, counts in _resampled(n))
    return np.array([by_image.mean(), *resamples])


def _interval(values: np.ndarray) -> dict[str, Any]:
    low, high = np.percentile(values[1:], (2.5, 97.5))
    return {"mean": round(float(values[0]), 4), "interval_95": [round(float(low), 4), round(float(high), 4)]}


def _counted(pieces: Pieces) -> dict[str, int]:
    """How many blocks of the mixed fronts use each mixer."""
    fronts = [pieces[MIXED, s].figures["architectures"] for s in SEEDS]
    blocks = [b for front in fronts for a in front for stage in a["stages"] for b in stage["blocks"]]
    return dict(Counter(block["mixer"]["type"] for block in blocks))


def draw(pieces: Pieces) -> None:
    figure, panels = plt.subplots(1, len(SEEDS), figsize=(12, 3.6), sharey=True, layout="constrained")
    for seed, axes in zip(SEEDS, panels, strict=True):
        for arm in ARMS:
            piece = pieces[arm, seed]
            accuracy = 100 * piece.right.mean(1)
            mmacs = np.array(piece.figures["mmacs"])
            kept = nondominated(np.stack([-accuracy, mmacs], 1))
            thick = 2.4 if arm in (MIXED, ONE_MORE) else 1
            axes.step(mmacs[kept], accuracy[kept], where="post", linewidth=thick, label=arm)
        axes.set(title=f"seed {seed}", xlabel="MMACs", xscale="log")
        axes.set_xticks([0.25, 0.5, 1, 2, 4], labels=["0.25", "0.5", "1", "2", "4"])
        axes.minorticks_off()
    panels[0].set_ylabel("accuracy on select, %")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    figure.savefig(FOLDER / "mixing.png", dpi=120)


def _file(arm: str, seed: int) -> str:
    return f"{arm.replace(' ', '_')}-{seed}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
