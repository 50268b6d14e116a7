"""How far can a supernet's numbers be trusted? What `nas assess` found, with the raw predictions, for good.

    nas train cifar10_small --set data=DATA
    nas assess runs/cifar10_small
    nas train cifar10_small --set data=DATA --set 'training.withheld=[["ratio", [1]]]' --run-dir withheld
    python -m experiments.benchmarks.trust runs/cifar10_small withheld/cifar10_small

The second supernet was never trained at one granularity of the channel mixers (MatFormer's claim is that such
subnets lie on the curve of the others). What a subnet reaches alone does not depend on that, so the same
subnets, with the same trainings alone, say how far it can be trusted: those that have the granularity
somewhere, beside those that do not.

Writes results/cifar10_small.json and the table in docs/training.md, and into results/cifar10_small.npz which
images of *test* each subnet gets right, inherited and alone: from that every figure follows.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.pieces import classes_of
from experiments.benchmarks.results import FOLDER, between_marks, table, write
from nas.assessment import Assessed, with_intervals
from nas.phases import reopened
from nas.phases.assess import SPLIT, raw_folder, read_right, recipe_id
from nas.rundir import RunDirectory
from nas.training import load_tensors

RAW = FOLDER / "cifar10_small.npz"
PAGE = FOLDER.parent.parent / "docs" / "training.md"
COMMAND = "python -m experiments.benchmarks.trust runs/cifar10_small withheld/cifar10_small"
ENDS = ("largest", "smallest")


@dataclass(frozen=True)
class Found:
    """What was assessed.

    Attributes:
        whole: the supernet that was trained on the whole space.
        withheld: the other one; `seen` says which subnets have nothing that it was not trained on.
        ends: which images the largest and the smallest subnet get right in the first, (2, images).
    """

    whole: Assessed
    withheld: Assessed
    ends: np.ndarray


def main(run: str, withheld: str) -> None:
    folder = Path(run)
    assessment = json.loads((folder / "assessment.json").read_text())
    collect(raw_folder(folder, assessment["recipe"]), assessment, withheld)
    found = evaluated(read())
    results = found | {
        "subnets": assessment["subnets"],
        "settings": settings_of(folder, withheld, assessment),
    }
    shutil.copyfile(folder / "assessment.png", FOLDER / "cifar10_small.png")
    for name in KEYS:
        print(f"{name}: {results[name]}")
    print(f"written to {write('cifar10_small', results)}")
    PAGE.write_text(with_table(PAGE.read_text(), results))


KEYS = {
    "tau_within_cost": "tau_within_cost",
    "tau_macs": "tau_macs_within_cost",
    "tau_ceiling": "tau_ceiling_within_cost",
    "top3_regret": "top3_regret",
    "median_gap": "median_gap",
}


def collect(folder: Path, assessment: dict[str, Any], other: str) -> None:
    """All raw predictions of an assessment and of the other supernet, eight images to a byte."""

    def right(name: str) -> np.ndarray:
        return read_right(folder / f"{name}.npz")

    subnets, weights, seeds = assessment["subnets"], assessment["weights"], assessment["settings"]["seeds"]
    inherited = [right(f"{s['id']}-inherited-{weights}") for s in subnets]
    alone = [[right(f"{s['id']}-{seed}") for seed in range(seeds)] for s in subnets]
    ends = [right(f"{assessment['ends'][end]['id']}-inherited-{weights}") for end in ENDS]
    withheld, seen = of_other(other, assessment)
    np.savez_compressed(
        RAW,
        images=np.array(len(inherited[0])),
        inherited=np.packbits(inherited, axis=-1),
        alone=np.packbits(alone, axis=-1),
        ends=np.packbits(ends, axis=-1),
        withheld=np.packbits(withheld, axis=-1),
        costs=np.array([s["mmacs"] for s in subnets]),
        bins=np.array([s["bin"] for s in subnets]),
        seen=seen,
    )


def of_other(run: str, assessment: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Which images the assessed subnets get right in the other supernet, (n, images), and which subnets have
    nothing that it was not trained on, (n,)."""
    directory = RunDirectory(Path(run).resolve())
    experiment, _ = reopened(directory.path)
    if recipe_id(experiment) != assessment["recipe"]:
        raise SystemExit(f"{run} must have the recipe of what was assessed, but for training.withheld.")
    supernet = experiment.supernet().with_state(load_tensors(directory.weights)[0])
    trained = experiment.training.trained(experiment.space)
    labels = np.concatenate([batch.targets.numpy() for batch in experiment.task.batches(SPLIT)])
    architectures = [experiment.space.from_json(s["architecture"]) for s in assessment["subnets"]]
    right = [classes_of(supernet, a, experiment.task, SPLIT) == labels for a in architectures]
    return np.array(right), np.array([a in trained for a in architectures])


def read() -> Found:
    with np.load(RAW, allow_pickle=False) as data:
        images = int(data["images"])
        inherited, alone, ends, withheld = (
            np.unpackbits(data[name], axis=-1, count=images).astype(bool)
            for name in ("inherited", "alone", "ends", "withheld")
        )
        everything = np.ones(len(inherited), dtype=bool)
        whole = Assessed(data["costs"], data["bins"], inherited, alone, everything)
        return Found(whole, replace(whole, inherited=withheld, seen=data["seen"]), ends)


def evaluated(found: Found) -> dict[str, Any]:
    """Every figure, from the raw predictions alone."""
    figures = with_intervals(found.whole)
    accuracies = {
        f"{end}_accuracy": 100 * float(right.mean()) for end, right in zip(ENDS, found.ends, strict=True)
    }
    unseen = with_intervals(found.withheld) | with_intervals(_change(found), _lost)
    return (
        {name: figures[of]["value"] for name, of in KEYS.items()}
        | accuracies
        | {"figures": figures, "withheld": unseen}
    )


def _change(found: Found) -> Assessed:
    """With what each subnet inherits of the second supernet more than of the first, by image: −1, 0 or 1."""
    change = found.withheld.inherited.astype(int) - found.whole.inherited
    return replace(found.withheld, inherited=change)


def _lost(change: Assessed) -> dict[str, float]:
    """Points that withholding takes from the unseen subnets, and from the others; and how many more of the
    former: what the subnets are and what another training changes cancels."""
    unseen, seen = (-100 * change.inherited[rows].mean() for rows in (~change.seen, change.seen))
    return {"lost.unseen": float(unseen), "lost.seen": float(seen), "lost_more": float(unseen - seen)}


def settings_of(folder: Path, withheld: str, assessment: dict[str, Any]) -> dict[str, Any]:
    """Of the assessment, and the recipes of the supernets."""
    recipes = {
        name: json.loads((Path(run) / "experiment.json").read_text())["settings"]["training"]
        for name, run in (("training", folder), ("withheld", withheld))
    }
    return assessment["settings"] | recipes


# --- the page -------------------------------------------------------------------------------------

ROWS = {
    "τ of inherited and alone, costs within 10 %": ("figures", "tau_within_cost"),
    "τ of MACs and alone": ("figures", "tau_macs_within_cost"),
    "τ of one training alone and the other": ("figures", "tau_ceiling_within_cost"),
    "τ of inherited above that of MACs": ("figures", "tau_above_macs"),
    "what the best of the top three lacks, points": ("figures", "top3_regret"),
    "gap alone − inherited, points": ("figures", "median_gap"),
    "… of 0.5, 1 and 2 MMACs": ("figures", "gap.0", "gap.1", "gap.2"),
    "one granularity withheld: gap of those that have it": ("withheld", "unseen.median_gap"),
    "… of the others": ("withheld", "median_gap"),
    "… τ of those that have it": ("withheld", "unseen.tau_within_cost"),
    "… points that withholding takes from them": ("withheld", "lost.unseen"),
    "… and from the others": ("withheld", "lost.seen"),
}


def with_table(page: str, results: dict[str, Any]) -> str:
    """The page of the documentation with the table of `results` between its marks."""
    rows = [(label, *_said(results[of][name] for name in names)) for label, (of, *names) in ROWS.items()]
    return between_marks(page, COMMAND, table(("figure", "value", "95 % interval"), rows))


def _said(figures: Iterable[dict[str, Any]]) -> tuple[str, str]:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    of = list(figures)
    values = ", ".join(number(figure["value"]) for figure in of)
    return values, ", ".join(" to ".join(map(number, figure["interval_95"])) for figure in of)


if __name__ == "__main__":
    main(*sys.argv[1:])
