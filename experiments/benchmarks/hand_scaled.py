"""Is a supernet worth it? Its front against models of hand-scaled sizes, at equal core-seconds, on CIFAR-10.

    python -m experiments.benchmarks.hand_scaled DATA [share/shares]

DATA is what `experiments/cifar10_small.py` takes. Each arm has `BUDGET` core-seconds for everything: training
of supernet or models, search, training on.

- supernet: trained, then searched for accuracy against latency;
- supernet, trained on: for `TUNED` of the time the point of the front for each latency budget is trained on;
- depthwise supernet, as it is and trained on: the same, with no other mixer than depthwise convolutions
  (added after the first results: is it mixing that costs the supernet what it lacks?);
- Swin manner, ConvNeXt manner: one block throughout, five sizes, trained one by one for as many epochs each;
- that size alone: one of the five sizes of the Swin manner, which gets all the time.

Each manner has a learning rate of its own, chosen beforehand on *search* (results/hand_scaled/rates.json);
that of the supernets is `cifar10_small`'s, which `learning_rates.py` found.

Latency is ONNX Runtime's on this machine: predicted in the search by a model fitted on this space
beforehand (its core-seconds are in the results), measured in the end, all models of all arms together. The
five latency budgets are what the five sizes of the Swin manner take. A model is chosen for a budget by
*search* and judged on *select*.

The work falls into pieces, one a training, which are done once and kept with their raw predictions in
results/hand_scaled/: `0/2` and `1/2` of them may run side by side (one thread each) once the first call has
timed the device, and a later call goes on. The call without a share does what is left, times all models and
writes what all of them say; it wants the machine to itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from experiments import cifar10_small
from experiments.benchmarks.pieces import (
    Piece,
    differences,
    epoch_seconds,
    epochs_in,
    found_by,
    front,
    interval,
    predictions,
    select,
    share_of,
)
from experiments.benchmarks.results import FOLDER, between_marks, table, write
from nas.architecture import architecture_id
from nas.devices import Device, Measured, OnnxRuntime, Profile, choose, measure, profile
from nas.evaluation import LatencyPredictor, statistics, subnet_accuracy
from nas.layers import Mixer, Window
from nas.layers.mixers.depthwise import DepthwiseConv
from nas.pareto import Scale, hypervolume
from nas.space import Space, oneof
from nas.supernet import Supernet
from nas.tasks import ImageClassification
from nas.training import Distillation, Recipe, train
from search_spaces import costs, hierarchical
from search_spaces.hierarchical import HierarchicalTransformer, Stage

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Stated before the first run.
BUDGET = 300.0  # core-seconds of an arm
TUNED = 0.25  # share of it in which finalists are trained on
SEARCHING = 40.0  # core-seconds that a search takes, of the budget
SEEDS = (0, 1, 2)
SIZES = ((16, 32, 1), (16, 32, 2), (24, 48, 2), (32, 64, 2), (32, 64, 3))  # widths, depth of both stages
MIDDLE = 2
SIDE, SEARCHED = 32, 2000
PROFILED, ROUNDS = 60, 200
SLACK = 1.02  # a model fits a latency budget that it exceeds by no more: two timings differ so much
RESAMPLES = 1000
TEACHING, RATE = 0.5, 0.2  # of the largest subnet, and of the learning rate, in training on

RAW = FOLDER / "hand_scaled"
PAGE = FOLDER.parent.parent / "docs" / "training.md"
BASE = Recipe(device="cpu", threads=1)
RATES = (0.003, 0.006, 0.012, 0.024)  # of learning; see `rates_of`
DEVICE = Device("onnxruntime", OnnxRuntime())
MIXED, DEPTHWISE = "supernet", "depthwise supernet"
MIXERS: dict[str, tuple[Mixer, ...]] = {
    MIXED: cifar10_small.MIXERS,
    DEPTHWISE: (DepthwiseConv(oneof(3, 5)),),
}
TRAINED_ON = {f"{supernet}, trained on": supernet for supernet in MIXERS}
SUPERNETS = {supernet: supernet for supernet in MIXERS} | TRAINED_ON
SWIN, CONVNEXT = "Swin manner", "ConvNeXt manner"
ALONE = tuple(f"that size alone, {i}" for i in range(len(SIZES)))
AT_FIVE_TIMES = "that size alone, at five times the core-seconds in all"
ARMS = (*SUPERNETS, SWIN, CONVNEXT, *ALONE)
SHOWN = (*SUPERNETS, SWIN, CONVNEXT, AT_FIVE_TIMES)
PIECES = [(arm, seed) for seed in SEEDS for arm in ARMS]


def main(data: str, share: str = "") -> None:
    torch.set_num_threads(1)
    task = cifar10_small.cifar10(data).fewer(search=SEARCHED)
    known = prepared(task)
    seconds = epoch_seconds(RAW / "seconds.json", _arms(task), task)
    rates = rates_of(task, seconds)
    for arm, seed in share_of(PIECES, share):
        if not _file(arm, seed).exists():
            piece(task, arm, seed, seconds, known, rates)
    if not share:
        report(task, known)


# --- models scaled by hand ------------------------------------------------------------------------


def swin(size: int) -> HierarchicalTransformer:
    """Windows, every other one shifted, of as many heads as the width has 8s."""

    def mixer(width: int, i: int) -> Mixer:
        return Window(heads=width // 8, head_dim=8, size=4, shift=i % 2 == 1)

    return _scaled(size, mixer)


def convnext(size: int) -> HierarchicalTransformer:
    """Depthwise convolutions of 5 × 5."""
    return _scaled(size, lambda width, i: DepthwiseConv(5))


def _scaled(size: int, mixer: Callable[[int, int], Mixer]) -> HierarchicalTransformer:
    first, second, depth = SIZES[size]
    one = hierarchical.space(
        cifar10_small.IMAGES,
        widths=((first,), (second,)),
        depths=(1, 1),
        mixers=[DepthwiseConv(5)],
        ratios=(2,),
        bits=(32,),
        patch=4,
    ).largest()

    def deeper(stage: Stage) -> Stage:
        (block,) = stage.blocks
        blocks = tuple(replace(block, mixer=mixer(stage.width, i)) for i in range(depth))
        return replace(stage, blocks=blocks)

    return replace(one, stages=tuple(map(deeper, one.stages)))


HAND = {SWIN: swin, CONVNEXT: convnext}


# --- the device -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What is known of the device before the first training.

    Attributes:
        profile: of the space of the supernets.
        budgets_ms: latencies of the five sizes of the Swin manner.
        core_seconds: that it took.
    """

    profile: Profile
    budgets_ms: tuple[float, ...]
    core_seconds: float


def prepared(task: ImageClassification) -> Known:
    """Profiles the device, once for all."""
    device, rest = RAW / "device.json", RAW / "device-budgets.json"
    if not rest.exists():
        space, start = cifar10_small.space(task), time.process_time()
        RAW.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            found = profile(
                DEVICE,
                choose(space, costs.features(space, SIDE), PROFILED),
                hierarchical.build,
                costs.features(space, SIDE),
                _example(),
                space=space,
                folder=Path(folder),
                rounds=ROUNDS,
            )
        found.save(device)
        timed = timings([swin(size) for size in range(len(SIZES))], found, space)
        data = {"budgets_ms": timed.ms.tolist(), "core_seconds": time.process_time() - start}
        rest.write_text(json.dumps(data))
    return what_is_known()


def what_is_known() -> Known:
    data = json.loads((RAW / "device-budgets.json").read_text())
    return Known(Profile.load(RAW / "device.json"), tuple(data["budgets_ms"]), data["core_seconds"])


def timings(architectures: Sequence[Any], known: Profile, space: Space) -> Measured:
    """Latencies of plain modules, all timed together; weights do not matter to them."""
    references = known.references(8)
    with tempfile.TemporaryDirectory() as folder:
        return measure(
            DEVICE,
            [hierarchical.build(a).eval() for a in architectures],
            _example(),
            references=[hierarchical.build(space.from_json(s.architecture)).eval() for s in references],
            references_ms=[s.latency_ms for s in references],
            rounds=ROUNDS,
            folder=Path(folder),
        )


def _example() -> torch.Tensor:
    return torch.zeros(DEVICE.batch, 3, SIDE, SIDE)


# --- one training ---------------------------------------------------------------------------------


def rates_of(task: ImageClassification, seconds: Mapping[str, float]) -> dict[str, float]:
    """Learning rates, once for all and not counted: a supernet's is that of `cifar10_small`; of each manner,
    the best of `RATES` on *search* for its middle size."""
    path = RAW / "rates.json"
    if not path.exists():
        rates = {MIXED: cifar10_small.LEARNING_RATE}
        found: dict[str, dict[float, float]] = {}
        for manner, scaled in HAND.items():
            architecture = scaled(MIDDLE)
            epochs = epochs_in(BUDGET / len(SIZES), seconds[f"{manner} {MIDDLE}"])
            found[manner] = {
                rate: _alone(task, architecture, replace(BASE, epochs=epochs, learning_rate=rate), 0)[1]
                for rate in RATES
            }
            rates[manner] = max(RATES, key=found[manner].__getitem__)
        path.write_text(json.dumps({"rates": rates, "accuracy on search": found}, indent=1))
    known: dict[str, float] = json.loads(path.read_text())["rates"]
    return known


def _alone(
    task: ImageClassification, architecture: HierarchicalTransformer, recipe: Recipe, seed: int
) -> tuple[Supernet, float]:
    """A plain model that is trained, and its accuracy on *search*."""
    model = Supernet(hierarchical.build, Space(architecture), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        train(model, task, recipe.alone(architecture), Path(folder), seed=seed)
    return model, subnet_accuracy(model, architecture, task, "search").mean


def piece(
    task: ImageClassification,
    arm: str,
    seed: int,
    seconds: Mapping[str, float],
    known: Known,
    rates: Mapping[str, float],
) -> None:
    """Does what an arm does with its core-seconds; writes its predictions."""
    start = time.process_time()
    if arm in SUPERNETS:
        recipe = replace(BASE, learning_rate=rates[MIXED])
        figures, classes = _supernet(task, arm, seed, seconds[SUPERNETS[arm]], known, recipe)
    else:
        figures, classes = _by_hand(task, arm, seed, seconds, rates)
    figures["core_seconds"] = time.process_time() - start - figures.pop("judging")
    Piece.write(_file(arm, seed), figures, classes)
    best = max(figures["search_accuracy"])
    print(f"{arm} {seed}: {figures['core_seconds']:.0f} core-seconds, {best:.1f} %", flush=True)


def _supernet(
    task: ImageClassification, arm: str, seed: int, seconds: float, known: Known, recipe: Recipe
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    tuned = TUNED * BUDGET if arm in TRAINED_ON else 0.0
    epochs = epochs_in(BUDGET - SEARCHING - tuned, seconds)
    supernet = _new_supernet(task, SUPERNETS[arm], seed)
    with tempfile.TemporaryDirectory() as folder:
        train(supernet, task, replace(recipe, epochs=epochs), Path(folder), seed=seed)
        latency = LatencyPredictor(DEVICE.name, known.profile.model, costs.features(supernet.space, SIDE))
        trials = front(supernet, task, Path(folder), seed, latency, "latency_ms")
        figures: dict[str, Any] = {"epochs": epochs} | found_by(trials, supernet, "latency_ms")
        finalists = [t.architecture for t in trials]
        after: list[Supernet] = []
        if tuned:
            places = _for_budgets(figures["search_accuracy"], figures["latency_ms"], known.budgets_ms)
            finalists = [finalists[i] for i in places]
            for name in ("latency_ms", "architectures", "search_accuracy"):
                figures[name] = [figures[name][i] for i in places]
            after = _trained_on(task, supernet, finalists, tuned, recipe, Path(folder), seed, figures)
    start = time.process_time()
    holders = after or [supernet] * len(finalists)
    rows = [predictions(h, [a], task)[0] for h, a in zip(holders, finalists, strict=True)]
    figures["judging"] = time.process_time() - start
    return figures, {"front": np.array(rows)}


def _for_budgets(accuracies: Sequence[float], ms: Sequence[float], budgets: Sequence[float]) -> list[int]:
    """The most accurate for each budget, once each, the fastest first."""
    fitting = [[i for i, t in enumerate(ms) if t <= budget] for budget in budgets]
    return sorted({max(f, key=lambda i: accuracies[i]) for f in fitting if f}, key=lambda i: ms[i])


def _trained_on(
    task: ImageClassification,
    supernet: Supernet,
    architectures: Sequence[Any],
    budget: float,
    recipe: Recipe,
    folder: Path,
    seed: int,
    figures: dict[str, Any],
) -> list[Supernet]:
    """Each trained on as a plain model for a share of the core-seconds, all for as many epochs."""
    largest = supernet.space.largest()
    teacher = supernet.extract(largest, buffers=statistics(supernet, largest, task))
    distillation = Distillation(in_place=0.0, external=TEACHING, teacher=teacher)
    recipe = replace(recipe, learning_rate=RATE * recipe.learning_rate, distillation=distillation)
    models = [
        Supernet(hierarchical.build, Space(a)).with_weights(supernet.extract(a, quantized=False), a)
        for a in architectures
    ]
    few = task.fewer(train=8 * task.batch_size)
    start = time.process_time()
    for i, (model, a) in enumerate(zip(models, architectures, strict=True)):
        copy = Supernet(hierarchical.build, Space(a)).with_state(
            {name: tensor.clone() for name, tensor in model.state().items()}
        )
        train(copy, few, replace(recipe.alone(a), epochs=2), folder / f"timed-{i}", seed=seed)
    an_epoch = (time.process_time() - start) / 16 * task.batch_count("train")
    epochs = epochs_in(budget, an_epoch)
    inherited, accuracies = figures["search_accuracy"], []
    for i, (model, a) in enumerate(zip(models, architectures, strict=True)):
        train(model, task, replace(recipe.alone(a), epochs=epochs), folder / f"on-{i}", seed=seed)
        accuracies.append(subnet_accuracy(model, a, task, "search").mean)
    better = [after >= before for after, before in zip(accuracies, inherited, strict=True)]
    figures |= {
        "epochs_on": epochs,
        "inherited": inherited,
        "search_accuracy": [max(pair) for pair in zip(accuracies, inherited, strict=True)],
    }
    return [model if kept else supernet for model, kept in zip(models, better, strict=True)]


def _by_hand(
    task: ImageClassification, arm: str, seed: int, seconds: Mapping[str, float], rates: Mapping[str, float]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    sizes = range(len(SIZES)) if arm in HAND else [ALONE.index(arm)]
    manner = arm if arm in HAND else SWIN
    epochs = epochs_in(BUDGET, sum(seconds[f"{manner} {size}"] for size in sizes))
    accuracies, rows, judging = [], [], 0.0
    for size in sizes:
        architecture = HAND[manner](size)
        recipe = replace(BASE, epochs=epochs, learning_rate=rates[manner])
        model, accuracy = _alone(task, architecture, recipe, seed)
        accuracies.append(accuracy)
        start = time.process_time()
        rows.append(predictions(model, [architecture], task)[0])
        judging += time.process_time() - start
    figures = {"epochs": epochs, "sizes": list(sizes), "search_accuracy": accuracies, "judging": judging}
    return figures, {"front": np.array(rows)}


def _new_supernet(task: ImageClassification, name: str, seed: int = 0) -> Supernet:
    return Supernet(hierarchical.build, cifar10_small.space(task, MIXERS[name]), seed=seed)


def _arms(task: ImageClassification) -> dict[str, tuple[Callable[[], Supernet], Recipe]]:
    """Trainings of which an epoch is timed."""
    arms: dict[str, tuple[Callable[[], Supernet], Recipe]] = {
        name: (partial(_new_supernet, task, name), BASE) for name in MIXERS
    }
    for manner, scaled in HAND.items():
        for size in range(len(SIZES)):
            a = scaled(size)
            arms[f"{manner} {size}"] = (partial(Supernet, hierarchical.build, Space(a)), BASE.alone(a))
    return arms


# --- what all of them say -------------------------------------------------------------------------


def report(task: ImageClassification, known: Known) -> None:
    np.save(RAW / "labels.npy", task.labels[select(task)].astype(np.uint8))
    pieces = read()
    models = {architecture_id(a): a for (arm, _), p in pieces.items() for a in _models(p, arm)}
    models |= {architecture_id(a): a for a in map(swin, range(len(SIZES)))}
    timed = timings(list(models.values()), known.profile, cifar10_small.space(task))
    (RAW / "latency_ms.json").write_text(
        json.dumps(dict(zip(models, timed.ms.tolist(), strict=True)), indent=0)
    )
    timed_pieces = read()
    results = evaluated(timed_pieces)
    draw(timed_pieces)
    for name, value in results.items():
        print(f"{name}: {json.dumps(value)}")
    print(f"written to {write('hand_scaled', results)}")
    PAGE.write_text(with_table(PAGE.read_text(), results))


def with_table(page: str, results: dict[str, Any]) -> str:
    """The page of the documentation with the table of `results` between its marks."""
    budgets = results["latency budgets, ms"]
    rows = [
        (
            arm,
            f"{np.mean(volumes):.3f} ({', '.join(f'{v:.3f}' for v in volumes)})",
            *("–" if v is None else f"{v:.1f}" for v in results["accuracy at each budget, %"][arm]),
        )
        for arm, volumes in results["hypervolume on select"].items()
    ]
    columns = ("arm", "hypervolume (by seed)", *(f"{b:.3f} ms" for b in budgets))
    return between_marks(page, "python -m experiments.benchmarks.hand_scaled DATA", table(columns, rows))


def read() -> dict[tuple[str, int], Piece]:
    """All pieces, with what was measured of their models once it is there."""
    labels = np.load(RAW / "labels.npy", allow_pickle=False)
    pieces = {(a, s): Piece.read(_file(a, s), labels) for a, s in PIECES}
    timed = RAW / "latency_ms.json"
    if timed.exists():
        ms = json.loads(timed.read_text())
        for (arm, _), piece in pieces.items():
            piece.figures["ms"] = [ms[architecture_id(a)] for a in _models(piece, arm)]
    return pieces


def _models(piece: Piece, arm: str) -> list[Any]:
    if arm in SUPERNETS:
        space = cifar10_small.space(cifar10_small.IMAGES, MIXERS[SUPERNETS[arm]])
        return [space.from_json(a) for a in piece.figures["architectures"]]
    return [HAND[arm if arm in HAND else SWIN](size) for size in piece.figures["sizes"]]


def evaluated(pieces: Mapping[tuple[str, int], Piece]) -> dict[str, Any]:
    """Every figure, from the raw predictions and measured latencies alone."""
    known = what_is_known()
    budgets = [float(b) for b in pieces[SWIN, 0].figures["ms"]]
    merged = _with_alone(pieces)
    slowest = max(max(p.figures["ms"]) for p in pieces.values())  # so that no arm's best lies at the edge
    scale = Scale(ideal=(-75.0, 0.0), nadir=(-30.0, slowest))
    volumes = {a: [_volume(merged[a, s], scale) for s in SEEDS] for a in SHOWN}
    at = {a: [[_at(merged[a, s], b) for b in budgets] for s in SEEDS] for a in SHOWN}
    against: dict[str, Any] = {}
    for a in SUPERNETS:
        for b in (SWIN, CONVNEXT, AT_FIVE_TIMES):
            first, second = ([merged[arm, s] for s in SEEDS] for arm in (a, b))
            of = lambda p, counts: _volume(p, scale, counts)  # noqa: E731
            against[f"{a} - {b}"] = interval(differences(first, second, of, RESAMPLES))
    return {
        "hypervolume on select": {a: np.round(v, 4).tolist() for a, v in volumes.items()},
        "difference of hypervolume": against,
        "latency budgets, ms": np.round(budgets, 5).tolist(),
        "accuracy at each budget, %": {
            a: [_rounded(np.mean(column)) for column in zip(*v, strict=True)] for a, v in at.items()
        },
        "accuracy at each budget, %, by seed": {
            a: [list(map(_rounded, row)) for row in v] for a, v in at.items()
        },
        "epochs": {a: pieces[a, 0].figures["epochs"] for a in ARMS},
        "core-seconds": {a: [round(pieces[a, s].figures["core_seconds"]) for s in SEEDS] for a in ARMS},
        "latency model on held-out subnets": known.profile.quality["held_out"],
        "settings": {
            "budget_core_seconds": BUDGET,
            "core_seconds_of_profiling": round(known.core_seconds),
            "scale": {"ideal": scale.ideal, "nadir": scale.nadir},
            "images": {"search": SEARCHED, "select": int(pieces[SWIN, 0].right["front"].shape[1])},
        },
    }


def _rounded(accuracy: float) -> float | None:
    """None where no model fits a latency budget."""
    return None if np.isnan(accuracy) else round(float(accuracy), 2)


def _with_alone(pieces: Mapping[tuple[str, int], Piece]) -> dict[tuple[str, int], Piece]:
    """The five trainings of AT_FIVE_TIMES as one arm, which took five times the core-seconds."""
    merged = dict(pieces)
    for s in SEEDS:
        parts = [pieces[arm, s] for arm in ALONE]
        figures = {n: [p.figures[n][0] for p in parts] for n in ("ms", "search_accuracy")}
        merged[AT_FIVE_TIMES, s] = Piece(
            figures, {"front": np.concatenate([p.right["front"] for p in parts])}
        )
    return merged


def _volume(piece: Piece, scale: Scale, counts: np.ndarray | None = None) -> float:
    return hypervolume(np.stack([-piece.accuracies("front", counts), piece.figures["ms"]], 1), scale)


def _at(piece: Piece, budget: float) -> float:
    """Accuracy on *select* of the model that *search* takes for a latency; NaN where none fits."""
    ms, chosen_by = np.array(piece.figures["ms"]), np.array(piece.figures["search_accuracy"])
    fitting = np.flatnonzero(ms <= budget * SLACK)
    if not len(fitting):
        return float("nan")
    return float(piece.accuracies("front")[fitting[np.argmax(chosen_by[fitting])]])


def draw(pieces: Mapping[tuple[str, int], Piece]) -> None:
    merged = _with_alone(pieces)
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    looks = ("C0o", "C9o", "C3o", "C6o", "C1s", "C2^", "C4d")
    for arm, look in zip(SHOWN, looks, strict=True):
        for s in SEEDS:
            piece = merged[arm, s]
            axes.plot(
                piece.figures["ms"],
                piece.accuracies("front"),
                look,
                markersize=4,
                alpha=0.8,
                label=arm if s == 0 else None,
            )
    axes.set(xlabel="latency, ms", ylabel="accuracy on select, %", xscale="log")
    axes.legend(frameon=False)
    figure.savefig(FOLDER / "hand_scaled.png", dpi=120)
    plt.close(figure)


def _file(arm: str, seed: int) -> Path:
    return RAW / f"{arm.replace(',', '').replace(' ', '_')}-{seed}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
