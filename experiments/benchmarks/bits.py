"""What is it worth to search bit-widths together with the architecture? On CIFAR-10, by exported files.

    python -m experiments.benchmarks.bits DATA [share/shares]

One space of up to 53 million multiply-accumulates, in which every mixer and channel mixer has weights of 4,
8 or 32 bits and inputs of 8 or 32. Three supernets of it are trained; each is searched in four ways, five
times, with `EVALUATIONS` evaluations of accuracy, latency and bytes of weights:

- joint: architecture and bits together;
- then bits: half of the evaluations for architectures at 32 bits, half for the bits of those on the front;
- INT8: all parts at 8 bits, inputs too;
- fp32: all parts at 32 bits.

After SimQ-NAS (Sarah et al., 2023). Latency is ONNX Runtime's on this machine, one image, one thread:
predicted in the search, measured in the end, all finalists of all arms in turn. Finalists are exported, and
the files answer the 5,000 images of *select*. DATA is as of `cifar10_small`; its 10,000 training images are
used.

The first call times the device, and wants the machine to itself. The rest falls into pieces, a supernet or a
search each, done once and kept with their raw predictions in results/bits/ (supernets in runs/bits/): `0/2`
and `1/2` of them may run side by side, and a later call goes on. The call without a share does what is left,
times all finalists and writes what all of them say; it, too, wants the machine to itself.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import t as student

from experiments import cifar10_small
from experiments.benchmarks.pieces import Piece, interval, resampled, select, share_of
from experiments.benchmarks.results import FOLDER, between_marks, table, write
from nas.architecture import architecture_id
from nas.devices import Device, OnnxRuntime, Profile, choose, measure, profile
from nas.evaluation import CALIBRATION_BATCHES, LatencyPredictor, statistics, subnet_accuracy
from nas.executor import SerialExecutor
from nas.export.onnx import export_onnx, onnx_session
from nas.layers import Bits, Global, Window
from nas.layers.mixers.depthwise import DepthwiseConv
from nas.log import TrialLog
from nas.objectives import Objective, as_costs
from nas.pareto import Scale, hypervolume, nondominated
from nas.quantize import AtBits
from nas.searchers import NSGA2
from nas.space import Constraint, Space, oneof
from nas.study import Study
from nas.supernet import Supernet
from nas.tasks import ImageClassification
from nas.training import Recipe, load_tensors, save_tensors, train
from nas.trial import Candidate, Evaluation, Trial
from search_spaces import costs, hierarchical
from search_spaces.hierarchical import HierarchicalTransformer
from search_spaces.laws import find_a_kernel

# Stated before the first run.
SUPERNETS, SEARCHES = (0, 1, 2), (0, 1, 2, 3, 4)  # seeds
EPOCHS = 120
LEARNING_RATE = 0.006
"""After 6 epochs the largest and the smallest architecture, at 8 bits, had 40.4 and 41.0 % at 0.003, 40.2 and
41.9 at 0.006, 40.4 and 40.4 at 0.012."""
EVALUATIONS, FINALISTS = 500, 16
SEARCHED = 1000  # images of *search* in each evaluation
CALIBRATED = 64  # images in each of the batches that ranges are calibrated on
SIDE, PROFILED, ROUNDS = 32, 140, 100
RESAMPLES = 1000
JOINT, THEN, INT8, FP32 = "joint", "then bits", "INT8", "fp32"
ARMS = (JOINT, THEN, INT8, FP32)
BITS = {JOINT: ((4, 8, 32), (8, 32)), INT8: ((8,), (8,)), FP32: ((32,), (32,))}  # of weights, of inputs
ACCURACIES = (30.0, 75.0)  # nadir and ideal, in %

OBJECTIVES = (
    Objective("accuracy", "%", "maximize"),
    Objective("latency_ms", "ms", "minimize"),
    Objective("size_bytes", "bytes", "minimize"),
)
DEVICE = Device("onnxruntime", OnnxRuntime())
EXAMPLE = torch.zeros(DEVICE.batch, 3, SIDE, SIDE)
RAW = FOLDER / "bits"
KEPT = Path("runs/bits")
PAGE = FOLDER.parent.parent / "docs" / "bits.md"
PIECES = [(arm, net, seed) for net in SUPERNETS for seed in SEARCHES for arm in ARMS]
REFERENCE = "largest at 8 bits"


@cache
def space(arm: str = JOINT) -> Space:
    """In which an arm searches; all are parts of the first, over which the supernets are."""
    weights, inputs = BITS[arm]
    attention: dict[str, Any] = {"heads": oneof(2, 4), "head_dim": 16}
    return hierarchical.space(
        cifar10_small.IMAGES,
        widths=((64, 96, 128), (96, 128, 192)),
        depths=(1, 3),
        mixers=(DepthwiseConv(oneof(3, 5)), Window(**attention, size=4), Global(**attention)),
        ratios=(1, 2, 4),
        bits=weights,
        activations=inputs,
        patch=4,
    )


def free_bits(architectures: Iterable[HierarchicalTransformer]) -> Space:
    """These architectures, at all bits."""
    weights, inputs = BITS[JOINT]
    bits = Bits(oneof(*weights), oneof(*inputs))

    def freed(architecture: HierarchicalTransformer) -> HierarchicalTransformer:
        stages = tuple(
            replace(
                stage,
                blocks=tuple(
                    replace(b, mixer=replace(b.mixer, bits=bits), ffn=replace(b.ffn, bits=bits))
                    for b in stage.blocks
                ),
            )
            for stage in architecture.stages
        )
        return replace(architecture, stages=stages)

    return Space(oneof(*map(freed, architectures)), [Constraint(Bits, find_a_kernel)])


def main(data: str, share: str = "") -> None:
    torch.set_num_threads(1)
    task = cifar10_small.cifar10(data).fewer(search=SEARCHED)
    if not (RAW / "device.json").exists():
        time_device()
        return
    for net in share_of(SUPERNETS, share):
        if not (KEPT / f"{net}.safetensors").exists():
            train_supernet(task, net)
    task = replace(task, batch_size=CALIBRATED)
    for arm, net, seed in share_of(PIECES, share):
        if not _file(arm, net, seed).exists():
            piece(task, arm, net, seed)
    for net in share_of(SUPERNETS, share):
        if not _file(REFERENCE, net, 0).exists():
            reference(task, net)
    if not share:
        report(task)


def time_device() -> None:
    """Learns latency over the whole space, once for all; of the machine to itself."""
    whole = space()
    with tempfile.TemporaryDirectory() as folder:
        found = profile(
            DEVICE,
            choose(whole, costs.features(whole, SIDE), PROFILED),
            AtBits(hierarchical.build),
            costs.features(whole, SIDE),
            EXAMPLE,
            space=whole,
            folder=Path(folder),
            rounds=ROUNDS,
        )
    RAW.mkdir(parents=True, exist_ok=True)
    found.save(RAW / "device.json")
    print(found.describe())


def train_supernet(task: ImageClassification, net: int) -> None:
    supernet, start = Supernet(hierarchical.build, space(), seed=net), time.process_time()
    folder = KEPT / f"unfinished-{net}"  # a call that is ended goes on from its checkpoints
    recipe = Recipe(epochs=EPOCHS, learning_rate=LEARNING_RATE, device="cpu", threads=1)
    train(supernet, task, recipe, folder, seed=net)
    save_tensors(KEPT / f"{net}.safetensors", supernet.state(), {})
    shutil.rmtree(folder)
    print(f"supernet {net}: {time.process_time() - start:.0f} core-seconds", flush=True)


def trained(net: int) -> Supernet:
    """That supernet, as soon as it is there: another call may be at it."""
    if not (KEPT / f"{net}.safetensors").exists():
        print(f"waiting for supernet {net}, which the other share trains", flush=True)
    while not (KEPT / f"{net}.safetensors").exists():
        time.sleep(10)
    return Supernet(hierarchical.build, space()).with_state(load_tensors(KEPT / f"{net}.safetensors")[0])


# --- one search -----------------------------------------------------------------------------------


class Judge:
    """All three objectives of a candidate, of whichever part of the space."""

    def __init__(self, supernet: Supernet, task: ImageClassification) -> None:
        self.supernet, self.task = supernet, task
        model = Profile.load(RAW / "device.json").model
        self.latency = LatencyPredictor(DEVICE.name, model, costs.features(space(), SIDE))

    def __call__(self, candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
        architecture = candidate.architecture
        values = {
            "latency_ms": float(self.latency(space().encode(architecture)[None])[0]),
            "size_bytes": float(self.supernet.size_bytes(architecture)),
        }
        if "accuracy" in known:
            return Evaluation(values | {"accuracy": known["accuracy"]})
        tally = subnet_accuracy(self.supernet, architecture, self.task, "search")
        return Evaluation(values | {"accuracy": tally.mean}, tally.n, tally.std_error)


def piece(task: ImageClassification, arm: str, net: int, seed: int) -> None:
    """Searches in one way; writes the finalists and what their files say."""
    supernet, start = trained(net), time.process_time()
    judge = Judge(supernet, task)
    if arm == THEN:
        first = searched(space(FP32), judge, seed, EVALUATIONS // 2)
        free = free_bits(t.architecture for t in finalists(first))
        trials = [*first, *searched(free, judge, seed, EVALUATIONS // 2)]
    else:
        trials = searched(space(arm), judge, seed, EVALUATIONS)
    chosen = finalists(trials)
    spent = time.process_time() - start
    keep(_file(arm, net, seed), supernet, task, [(t.architecture, t.objectives) for t in chosen], spent)
    best = max(t.objectives["accuracy"] for t in chosen)
    print(f"{arm} {net} {seed}: {spent:.0f} core-seconds, {best:.1f} %", flush=True)


def searched(part: Space, judge: Judge, seed: int, evaluations: int) -> list[Trial]:
    with tempfile.TemporaryDirectory() as folder:
        return Study(
            "nsga2",
            part,
            OBJECTIVES,
            NSGA2(part, OBJECTIVES, seed=seed),
            SerialExecutor(judge),
            TrialLog(Path(folder) / "trials.jsonl", part),
            trials=evaluations,
            parallel=1,
            weights="here",
        ).run()


def finalists(trials: Sequence[Trial]) -> list[Trial]:
    """Those that together span the most, taken one by one, the fastest first."""
    found = as_costs(OBJECTIVES, [t.objectives for t in trials])
    front = np.flatnonzero(nondominated(found)).tolist()
    box, chosen = scale(), list[int]()
    while len(chosen) < min(FINALISTS, len(front)):
        rest = [i for i in front if i not in chosen]
        chosen.append(max(rest, key=lambda i: hypervolume(found[[*chosen, i]], box)))
    return [trials[i] for i in sorted(chosen, key=lambda i: float(found[i, 1]))]


def reference(task: ImageClassification, net: int) -> None:
    """The largest architecture with all parts at 8 bits: what SimQ-NAS compares with."""
    supernet, largest = trained(net), space(INT8).largest()
    objectives = Judge(supernet, task)(Candidate(largest), {}).objectives
    keep(_file(REFERENCE, net, 0), supernet, task, [(largest, objectives)], 0.0)


def keep(
    file: Path,
    supernet: Supernet,
    task: ImageClassification,
    chosen: Sequence[tuple[Any, Mapping[str, float]]],
    spent: float,
) -> None:
    """A piece: figures of the finalists, and the classes that their files give."""
    figures: dict[str, Any] = {name: [found[name] for _, found in chosen] for name in FIGURES}
    figures |= {"architectures": [space().to_json(a) for a, _ in chosen], "core_seconds": spent}
    rows = [exported(supernet, architecture, task) for architecture, _ in chosen]
    Piece.write(file, figures, {"front": np.array(rows)})


FIGURES = tuple(objective.name for objective in OBJECTIVES)  # accuracy on *search*, predicted latency, bytes


def exported(supernet: Supernet, architecture: Any, task: ImageClassification) -> np.ndarray:
    """Classes of *select* by the ONNX file, uint8 (images,)."""
    module = supernet.extract(architecture, buffers=statistics(supernet, architecture, task))
    order = select(task)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(module, torch.zeros(2, *task.image_shape), path)
        session = onnx_session(path)
        classes = [
            session.run(["y"], {"x": task.prepared(chosen).numpy()})[0].argmax(-1)
            for chosen in np.array_split(order, len(order) // 50)
        ]
    return np.concatenate(classes).astype(np.uint8)


# --- what all of them say -------------------------------------------------------------------------


def report(task: ImageClassification) -> None:
    np.save(RAW / "labels.npy", task.labels[select(task)].astype(np.uint8))
    measured = timings([a for piece in read().values() for a in piece.figures["architectures"]])
    (RAW / "latency_ms.json").write_text(json.dumps(measured, indent=0))
    pieces = read()
    results = evaluated(pieces)
    for name, value in results.items():
        print(f"{name}: {json.dumps(value)}")
    draw(pieces)
    print(f"written to {write('bits', results)}")
    PAGE.write_text(with_table(PAGE.read_text(), results))


def timings(architectures: Iterable[Any]) -> dict[str, float]:
    """Milliseconds of the exported files of these (as JSON) by id, all timed in turn, as of the time of the
    profile."""
    known, build = Profile.load(RAW / "device.json"), AtBits(hierarchical.build)
    distinct = {architecture_id(a): a for a in map(space().from_json, architectures)}
    references = known.references(8)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            DEVICE,
            [build(a).eval() for a in distinct.values()],
            EXAMPLE,
            references=[build(space().from_json(s.architecture)).eval() for s in references],
            references_ms=[s.latency_ms for s in references],
            rounds=ROUNDS,
            folder=Path(folder),
        )
    print(f"{len(distinct)} files timed; the machine was {found.drift:.3f} times as slow as when profiled")
    return dict(zip(distinct, found.ms.tolist(), strict=True))


def read() -> dict[tuple[str, int, int], Piece]:
    """All pieces, with what was measured of their finalists once it is there ("ms")."""
    labels = np.load(RAW / "labels.npy", allow_pickle=False)
    keys = [*PIECES, *((REFERENCE, net, 0) for net in SUPERNETS)]
    pieces = {key: Piece.read(_file(*key), labels) for key in keys}
    if (RAW / "latency_ms.json").exists():
        ms = json.loads((RAW / "latency_ms.json").read_text())
        for piece in pieces.values():
            ids = (architecture_id(space().from_json(a)) for a in piece.figures["architectures"])
            piece.figures["ms"] = [ms[i] for i in ids]
    return pieces


Pieces = Mapping[tuple[str, int, int], Piece]
AXES = {
    "hypervolume on select": (0, 1, 2),
    "of accuracy and latency": (0, 1),
    "of accuracy and bytes": (0, 2),
}
TOGETHER = "of all five together"


@cache
def scale() -> Scale:
    """From nothing to the largest architecture at 32 bits."""
    whole = architecture_id(space().largest())
    slowest = next(s.latency_ms for s in Profile.load(RAW / "device.json").samples if s.id == whole)
    sizes = costs.figures(space(), SIDE)(space().encode(space().largest())[None])
    largest = float(sizes[0, costs.FIGURES.index("size_bytes")])
    low, high = ACCURACIES
    return Scale(ideal=(-high, 0.0, 0.0), nadir=(-low, slowest, largest))


def volume(piece: Piece, counts: np.ndarray | None = None, axes: Sequence[int] = (0, 1, 2)) -> float:
    """Hypervolume of what was exported and measured, where each image counts so many times, (images,)."""
    return _volume([piece], counts, axes)


def _volume(
    pieces: Sequence[Piece], counts: np.ndarray | None = None, axes: Sequence[int] = (0, 1, 2)
) -> float:
    """That of all their finalists together."""
    found = np.concatenate(
        [
            np.stack([-p.accuracies("front", counts), p.figures["ms"], p.figures["size_bytes"]], 1)
            for p in pieces
        ]
    )
    box = scale()
    return hypervolume(
        found[:, list(axes)], Scale([box.ideal[i] for i in axes], [box.nadir[i] for i in axes])
    )


def evaluated(pieces: Pieces) -> dict[str, Any]:
    """Every figure, from the raw predictions and the measured latencies alone."""
    everywhere: dict[str, Any] = {
        name: {
            arm: [[round(volume(pieces[arm, n, s], None, axes), 4) for s in SEARCHES] for n in SUPERNETS]
            for arm in ARMS
        }
        for name, axes in AXES.items()
    }
    gains = gained(pieces)
    latency, size = (ratios(pieces, name) for name in ("ms", "size_bytes"))
    return {
        "hv_gain_over_int8": gains[INT8],
        "hv_gain_over_fp32": gains[FP32],
        "hv_gain_over_then_bits": gains[THEN],
        "latency_ratio": latency,
        "size_ratio": size,
        "ratios to a searched INT8 model": {
            "latency": searched_ratios(pieces, "ms"),
            "size": searched_ratios(pieces, "size_bytes"),
        },
        **everywhere,
        TOGETHER: together(pieces),
        "bits of the joint finalists, %": bits_of(pieces),
        "error of predicted latency, %": errors(pieces),
        "core-seconds of a search": {
            arm: round(float(np.mean([pieces[arm, n, s].figures["core_seconds"] for n, s in _RUNS])))
            for arm in ARMS
        },
        "settings": {
            "evaluations": EVALUATIONS,
            "finalists": FINALISTS,
            "epochs": EPOCHS,
            "learning_rate": LEARNING_RATE,
            "images": {
                "search": SEARCHED,
                "calibration": CALIBRATION_BATCHES * CALIBRATED,
                "select": int(pieces[JOINT, 0, 0].right["front"].shape[1]),
            },
            "scale": {"ideal": scale().ideal, "nadir": scale().nadir},
            "resamples": RESAMPLES,
        },
    }


def together(pieces: Pieces) -> dict[str, list[float]]:
    """Hypervolume of all finalists of an arm, by supernet: what five times the evaluations would find at
    least."""
    return {
        arm: [round(_volume([pieces[arm, n, s] for s in SEARCHES]), 4) for n in SUPERNETS] for arm in ARMS
    }


_RUNS = [(n, s) for n in SUPERNETS for s in SEARCHES]


def gained(pieces: Pieces) -> dict[str, dict[str, Any]]:
    """Hypervolume of the joint search less that of each other, with an interval over supernets, searches of
    each, and images.

    A bootstrap of three supernets comes out narrow where these differ most: beside it, "t_95" is Student's
    interval over the means of supernets.
    """
    others = [arm for arm in ARMS if arm != JOINT]

    def table_of(counts: np.ndarray | None) -> np.ndarray:
        """(arms, supernets, searches)"""
        return np.array(
            [[[volume(pieces[a, n, s], counts) for s in SEARCHES] for n in SUPERNETS] for a in ARMS]
        )

    def means(volumes: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Joint less each other, over the searches `at` (supernets, searches, 2) that were drawn."""
        drawn = volumes[:, at[..., 0], at[..., 1]].mean((1, 2))
        return drawn[ARMS.index(JOINT)] - np.array([drawn[ARMS.index(arm)] for arm in others])

    each = np.stack(np.meshgrid(SUPERNETS, SEARCHES, indexing="ij"), -1)
    rows, rng = [means(table_of(None), each)], np.random.default_rng(1)
    for nets, counts in resampled(pieces[JOINT, 0, 0].right["front"].shape[1], len(SUPERNETS), RESAMPLES):
        searches = rng.integers(len(SEARCHES), size=(len(SUPERNETS), len(SEARCHES)))
        rows.append(means(table_of(counts), np.stack(np.broadcast_arrays(nets[:, None], searches), -1)))
    volumes = table_of(None).mean(2)  # (arms, supernets)
    return {
        arm: interval(np.array(rows)[:, i]) | {"t_95": students(volumes[0] - volumes[ARMS.index(arm)])}
        for i, arm in enumerate(others)
    }


def students(values: np.ndarray) -> list[float]:
    """Student's 95 % interval of the mean of values (n,)."""
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return [round(float(values.mean()) - half, 4), round(float(values.mean()) + half, 4)]


def ratios(pieces: Pieces, cost: str) -> dict[str, Any]:
    """How many times less than the largest INT8 model costs one of the joint front that is at least as
    accurate, in SimQ-NAS's manner: by supernet and search, and what is lost on *select*.

    As *search* finds it, finalists are in part lucky, while the reference was not chosen by it; so the same
    again, chosen by every second image of *select* and judged by the others.
    """
    images = pieces[JOINT, 0, 0].right["front"].shape[1]
    even = (np.arange(images) % 2 == 0).astype(float)

    def on(counts: np.ndarray | None) -> Callable[[Piece], np.ndarray]:
        return lambda piece: piece.accuracies("front", counts)

    by_search = _ratios(pieces, cost, lambda piece: np.array(piece.figures["accuracy"]), on(None))
    return by_search | {"chosen on half of select": _ratios(pieces, cost, on(even), on(1 - even))}


def _ratios(
    pieces: Pieces,
    cost: str,
    choose: Callable[[Piece], np.ndarray],
    judge: Callable[[Piece], np.ndarray],
) -> dict[str, Any]:
    """As `ratios`, by accuracies of finalists to choose and to judge by."""
    found, lost = [], []
    for n, s in _RUNS:
        base, joint = pieces[REFERENCE, n, 0], pieces[JOINT, n, s]
        i = _cheapest(joint, choose(joint), choose(base)[0], cost)
        if i is not None:
            found.append(base.figures[cost][0] / joint.figures[cost][i])
            lost.append(judge(base)[0] - judge(joint)[i])
    if not found:
        return {"searches with one": 0}
    return {
        "median": round(float(np.median(found)), 3),
        "largest": round(max(found), 3),
        "smallest": round(min(found), 3),
        "searches with one": len(found),
        "mean points lost on select": round(float(np.mean(lost)), 3),
    }


def searched_ratios(pieces: Pieces, cost: str) -> dict[str, Any]:
    """The same against each finalist of a search at 8 bits, on the same supernet with the same seed; of
    those that a joint finalist is as accurate as."""
    found, lost, models = [], [], 0
    for n, s in _RUNS:
        base, joint = pieces[INT8, n, s], pieces[JOINT, n, s]
        models += len(base.figures["accuracy"])
        for k, accuracy in enumerate(base.figures["accuracy"]):
            i = _cheapest(joint, np.array(joint.figures["accuracy"]), accuracy, cost)
            if i is not None:
                found.append(base.figures[cost][k] / joint.figures[cost][i])
                lost.append(base.accuracies("front")[k] - joint.accuracies("front")[i])
    if not found:
        return {"models": 0, "of": models}
    low, middle, high = np.percentile(found, (25, 50, 75))
    return {
        "median": round(float(middle), 3),
        "quartiles": [round(float(low), 3), round(float(high), 3)],
        "models": len(found),
        "of": models,
        "mean points lost on select": round(float(np.mean(lost)), 3),
    }


def _cheapest(piece: Piece, accuracies: np.ndarray, least: float, cost: str) -> int | None:
    """Of the finalists that are so accurate."""
    fitting = np.flatnonzero(accuracies >= least).tolist()
    return min(fitting, key=lambda i: piece.figures[cost][i], default=None)


def bits_of(pieces: Pieces) -> dict[str, float]:
    """How many of all parts of all joint finalists have which bits."""
    bits = Counter(
        f"{part.bits.weight}, inputs {part.bits.activation}"
        for n, s in _RUNS
        for data in pieces[JOINT, n, s].figures["architectures"]
        for stage in space().from_json(data).stages
        for block in stage.blocks
        for part in (block.mixer, block.ffn)
    )
    return {name: round(100 * n / bits.total(), 1) for name, n in sorted(bits.items())}


def errors(pieces: Pieces) -> dict[str, float]:
    """Median of |predicted / measured − 1| over the finalists of each arm."""
    return {
        arm: round(
            100
            * float(
                np.median(
                    [
                        abs(predicted / measured - 1)
                        for n, s in _RUNS
                        for predicted, measured in zip(
                            pieces[arm, n, s].figures["latency_ms"],
                            pieces[arm, n, s].figures["ms"],
                            strict=True,
                        )
                    ]
                )
            ),
            2,
        )
        for arm in ARMS
    }


def with_table(page: str, results: dict[str, Any]) -> str:
    """`page` with a row for each arm."""
    rows = [
        (
            arm,
            *(f"{np.mean(results[name][arm]):.3f}" for name in (*AXES, TOGETHER)),
            "" if arm == JOINT else _said(results[f"hv_gain_over_{arm.lower().replace(' ', '_')}"]),
            results["core-seconds of a search"][arm],
        )
        for arm in ARMS
    ]
    columns = ("search", *AXES, TOGETHER, "joint − this (95 % by bootstrap; by Student)", "core-seconds")
    return between_marks(page, "python -m experiments.benchmarks.bits DATA", table(columns, rows))


def _said(found: Mapping[str, Any]) -> str:
    (low, high), (lowest, highest) = found["interval_95"], found["t_95"]
    return f"{found['mean']:+.3f} ({low:+.3f} to {high:+.3f}; {lowest:+.3f} to {highest:+.3f})"


def draw(pieces: Pieces) -> None:
    """results/bits.png: all finalists of all searches."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for colour, arm in enumerate(ARMS):
        found = [pieces[arm, n, s] for n, s in _RUNS]
        accuracies = np.concatenate([p.accuracies("front") for p in found])
        for axis, (cost, unit) in zip(axes, (("ms", 1), ("size_bytes", 1e6)), strict=True):
            x = np.concatenate([p.figures[cost] for p in found]) / unit
            axis.plot(x, accuracies, f"C{colour}.", ms=3, alpha=0.6, label=arm)
    for axis, name in zip(axes, ("latency, ms", "weights, MB"), strict=True):
        axis.set(xlabel=name, xscale="log")
        low, high = axis.get_xlim()
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5) if low < t < high]
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
    axes[0].set(ylabel="accuracy on select, %")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(FOLDER / "bits.png", dpi=150)
    plt.close(figure)


def _file(arm: str, net: int, seed: int) -> Path:
    return RAW / f"{arm.replace(' ', '_')}-{net}-{seed}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
