"""How far can a supernet's numbers be trusted? What `nas assess` found, with the raw predictions, for good.

    nas train cifar10_small --set data=DATA
    nas assess runs/cifar10_small
    nas train cifar10_small --set data=DATA --set 'training.withheld=[["ratio", [1]]]' --run-dir withheld
    nas train cifar10_small --set data=DATA --set training.epochs=520 --run-dir longer
    python -m experiments.benchmarks.trust runs/cifar10_small withheld/cifar10_small longer/cifar10_small

What a subnet reaches alone does not depend on a supernet: two more are held against the same trainings. One
was never trained at one granularity of the channel mixers (MatFormer's claim is that such subnets lie on the
curve of the others); one was trained four times as long, while the subnets alone were not: what is wrong with
the first, too little training or the sharing?

Writes results/cifar10_small.json and the table in docs/training.md, and into results/cifar10_small.npz which
images of *test* each subnet gets right, inherited and alone: from that every figure follows.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.pieces import classes_of
from experiments.benchmarks.results import FOLDER, between_marks, table, write
from nas.assessment import Assessed, close, kendall, with_intervals
from nas.phases import reopened
from nas.phases.assess import SPLIT, raw_folder, read_right
from nas.rundir import RunDirectory
from nas.training import ASIDE, load_tensors

RAW = FOLDER / "cifar10_small.npz"
PAGE = FOLDER.parent.parent / "docs" / "training.md"
COMMAND = "python -m experiments.benchmarks.trust runs/cifar10_small withheld/… longer/…"
ENDS = ("largest", "smallest")


@dataclass(frozen=True)
class Found:
    """What was assessed, of each supernet.

    Attributes:
        whole: the one that `nas assess` was about.
        withheld: `seen` says which subnets have nothing that it was not trained on.
        longer: the one that was trained four times as long.
        ends: which images the largest and the smallest subnet get right in the first, (2, images).
        choices: widths and depths of the subnets by name, (subnets,).
    """

    whole: Assessed
    withheld: Assessed
    longer: Assessed
    ends: np.ndarray
    choices: dict[str, np.ndarray]


def main(run: str, withheld: str, longer: str) -> None:
    folder = Path(run)
    assessment = json.loads((folder / "assessment.json").read_text())
    recipes = {name: training_of(Path(r)) for name, r in zip(SUPERNETS, (run, withheld, longer), strict=True)}
    require_alike(recipes)
    collect(raw_folder(folder, assessment["recipe"]), assessment, withheld, longer)
    settings = assessment["settings"] | {"training": recipes}
    results = evaluated(read()) | {"subnets": assessment["subnets"], "settings": settings}
    shutil.copyfile(folder / "assessment.png", FOLDER / "cifar10_small.png")
    for name in KEYS:
        print(f"{name}: {results[name]}")
    print(f"written to {write('cifar10_small', results)}")
    PAGE.write_text(with_table(PAGE.read_text(), results))


SUPERNETS = ("as it is", "withheld", "longer")
KEYS = {
    "tau_within_cost": "tau_within_cost",
    "tau_macs": "tau_macs_within_cost",
    "tau_ceiling": "tau_ceiling_within_cost",
    "top3_regret": "top3_regret",
    "median_gap": "median_gap",
}


def training_of(run: Path) -> dict[str, Any]:
    """Settings of the recipe."""
    settings: dict[str, Any] = json.loads((run / "experiment.json").read_text())["settings"]
    return dict(settings["training"])


def require_alike(recipes: dict[str, dict[str, Any]]) -> None:
    """Raises SystemExit for supernets that differ in more than what they are to be compared by."""
    free = ("withheld", "epochs", *ASIDE)
    first, *others = ({k: v for k, v in recipe.items() if k not in free} for recipe in recipes.values())
    if any(other != first for other in others):
        raise SystemExit("All supernets must have the same recipe, but for training.withheld and .epochs.")


def collect(folder: Path, assessment: dict[str, Any], withheld: str, longer: str) -> None:
    """All raw predictions of an assessment and of the other supernets, eight images to a byte."""

    def right(name: str) -> np.ndarray:
        return read_right(folder / f"{name}.npz")

    subnets, weights, seeds = assessment["subnets"], assessment["weights"], assessment["settings"]["seeds"]
    others = {"withheld": of_other(withheld, assessment), "longer": of_other(longer, assessment)}
    rows: dict[str, Any] = {
        "inherited": [right(f"{s['id']}-inherited-{weights}") for s in subnets],
        "alone": [[right(f"{s['id']}-{seed}") for seed in range(seeds)] for s in subnets],
        "ends": [right(f"{assessment['ends'][end]['id']}-inherited-{weights}") for end in ENDS],
        **{name: found for name, (found, _) in others.items()},
    }
    packed: dict[str, Any] = {name: np.packbits(found, axis=-1) for name, found in rows.items()}
    np.savez_compressed(
        RAW,
        images=np.array(assessment["settings"]["images"]),
        costs=np.array([s["mmacs"] for s in subnets]),
        bins=np.array([s["bin"] for s in subnets]),
        seen=others["withheld"][1],
        **packed,
        **choices_of([s["architecture"]["stages"] for s in subnets]),
    )


def choices_of(stages: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    widths = {f"width of stage {i}": np.array([each[i]["width"] for each in stages]) for i in (0, 1)}
    depths = {f"depth of stage {i}": np.array([len(each[i]["blocks"]) for each in stages]) for i in (0, 1)}
    return widths | depths


def of_other(run: str, assessment: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Which images the assessed subnets get right in another supernet, (n, images), and which subnets have
    nothing that it was not trained on, (n,)."""
    directory = RunDirectory(Path(run).resolve())
    experiment, _ = reopened(directory.path)
    space, task, recipe = experiment.space, experiment.task, experiment.training
    supernet = experiment.supernet().with_state(load_tensors(directory.weights)[0])
    trained = recipe.trained(space)
    labels = np.concatenate([batch.targets.numpy() for batch in task.batches(SPLIT)])
    architectures = [space.from_json(s["architecture"]) for s in assessment["subnets"]]
    right = [classes_of(supernet, a, task, SPLIT) == labels for a in architectures]
    return np.array(right), np.array([a in trained for a in architectures])


def read() -> Found:
    with np.load(RAW, allow_pickle=False) as data:
        images = int(data["images"])
        inherited, alone, ends, withheld, longer = (
            np.unpackbits(data[name], axis=-1, count=images).astype(bool)
            for name in ("inherited", "alone", "ends", "withheld", "longer")
        )
        everything = np.ones(len(inherited), dtype=bool)
        whole = Assessed(data["costs"], data["bins"], inherited, alone, everything)
        others = replace(whole, inherited=withheld, seen=data["seen"]), replace(whole, inherited=longer)
        choices = {name: data[name] for name in data.files if " of stage " in name}
        return Found(whole, *others, ends, choices)


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
        | {"figures": figures, "withheld": unseen, "longer": with_intervals(found.longer)}
        | {"biases": biases(found), "tau_of_supernets": agreement(found)}
    )


def biases(found: Found) -> dict[str, dict[str, float]]:
    """Pearson's correlation within bins of a choice and the gap alone − inherited: above 0, the supernet
    thinks too little of it."""

    def within(values: np.ndarray) -> np.ndarray:
        bins = found.whole.bins
        return values - np.array([values[bins == b].mean() for b in bins])

    def correlation(values: np.ndarray, of: Assessed) -> float:
        gap = of.alone.mean((1, 2)) - of.inherited.mean(1)
        return round(float(np.corrcoef(within(values), within(gap))[0, 1]), 3)

    return {
        name: {"as it is": correlation(values, found.whole), "longer": correlation(values, found.longer)}
        for name, values in found.choices.items()
    }


def agreement(found: Found) -> float:
    """Kendall's τ, within costs, of what is inherited of the first supernet and of the one trained longer."""
    first, second = (of.inherited.mean(1) for of in (found.whole, found.longer))
    return round(kendall(first, second, close(found.whole.costs)), 3)


def _change(found: Found) -> Assessed:
    """With what each subnet inherits of the second supernet more than of the first, by image: −1, 0 or 1."""
    change = found.withheld.inherited.astype(int) - found.whole.inherited
    return replace(found.withheld, inherited=change)


def _lost(change: Assessed) -> dict[str, float]:
    """Points that withholding takes from the unseen subnets, and from the others; and how many more of the
    former: what the subnets are and what another training changes cancels."""
    unseen, seen = (-100 * change.inherited[rows].mean() for rows in (~change.seen, change.seen))
    return {"lost.unseen": float(unseen), "lost.seen": float(seen), "lost_more": float(unseen - seen)}


# --- the page -------------------------------------------------------------------------------------

ROWS = {
    "τ of inherited and alone, costs within 10 %": ("figures", "tau_within_cost"),
    "τ of MACs and alone": ("figures", "tau_macs_within_cost"),
    "τ of one training alone and the other": ("figures", "tau_ceiling_within_cost"),
    "τ of inherited above that of MACs": ("figures", "tau_above_macs"),
    "what the best of the top three lacks, points": ("figures", "top3_regret"),
    "… of the three with the most MACs": ("figures", "top3_regret_macs"),
    "… of three that are drawn": ("figures", "top3_regret_random"),
    "gap alone − inherited, points": ("figures", "median_gap"),
    "… at 0.5, 1 and 2 MMACs": ("figures", "gap.0", "gap.1", "gap.2"),
    "one granularity withheld: gap of those that have it": ("withheld", "unseen.median_gap"),
    "… of the others": ("withheld", "median_gap"),
    "… τ of those that have it": ("withheld", "unseen.tau_within_cost"),
    "… points that withholding takes from them": ("withheld", "lost.unseen"),
    "… and from the others": ("withheld", "lost.seen"),
    "supernet trained four times as long: gap": ("longer", "median_gap"),
    "… of 0.5, 1 and 2 MMACs": ("longer", "gap.0", "gap.1", "gap.2"),
    "… τ": ("longer", "tau_within_cost"),
    "… what the best of the top three lacks": ("longer", "top3_regret"),
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
