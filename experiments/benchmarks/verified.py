"""What a run found: its verified front, with the raw predictions on *test*, for good.

    nas run cifar10 --set data=DATA
    python -m experiments.benchmarks.verified runs/cifar10

writes results/NAME.json and a copy of the front's picture, and into results/NAME.npz the classes that the
largest and the smallest subnet and the points of the front give for each image of *test*: every accuracy on
*test* follows from that.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import results
from experiments.benchmarks.pieces import classes_of, packed, unpacked
from nas.phases import reopened
from nas.phases.finetune import FINE_TUNED
from nas.rundir import RunDirectory
from nas.training import load_tensors

ENDS = ("largest", "smallest")


def main(run: str) -> None:
    directory = RunDirectory(Path(run).resolve())
    experiment, _ = reopened(directory.path)
    task, space = experiment.task, experiment.space
    supernet = experiment.supernet().with_state(load_tensors(directory.weights)[0])
    points = [e for e in directory.read_front() if e["front"]]
    architectures = [space.largest(), space.smallest(), *(space.from_json(e["architecture"]) for e in points)]
    trained = [p["id"] for p in points if p.get("trained", {}).get(FINE_TUNED, {}).get("deployed")]
    if trained:
        raise SystemExit(f"{run} must be as `nas run` left it, but points were trained on since: {trained}.")
    classes = np.array([classes_of(supernet, a, task, "test") for a in architectures])
    np.savez_compressed(
        raw(experiment.name),
        classes=packed(classes),
        labels=np.concatenate([b.targets.numpy() for b in task.batches("test")]).astype(np.uint8),
        ids=np.array([*ENDS, *(f"{e['id']} {e['device']}" for e in points)]),
    )
    found = evaluated(experiment.name) | {
        "front": [about(e) for e in points],
        "seconds of training": round(seconds_of(directory.supernet / "history.jsonl")),
        "settings": json.loads((directory.path / "experiment.json").read_text())["settings"],
    }
    shutil.copyfile(directory.path / "front.png", results.FOLDER / f"{experiment.name}.png")
    for end in ENDS:
        print(f"{end}: {found[f'{end}_accuracy']:.2f} % on test")
    print(f"written to {results.write(experiment.name, found)}")


def raw(name: str) -> Path:
    return results.FOLDER / f"{name}.npz"


def evaluated(name: str) -> dict[str, Any]:
    """Accuracies on *test* in %, from the raw predictions alone."""
    with np.load(raw(name), allow_pickle=False) as data:
        labels, ids = data["labels"], data["ids"].tolist()
        classes = unpacked(data["classes"])[:, : len(labels)]
    accuracies = dict(zip(ids, (100 * (classes == labels).mean(1)).round(4).tolist(), strict=True))
    ends = {f"{end}_accuracy": accuracies.pop(end) for end in ENDS}
    return ends | {"accuracy on test, %": accuracies}


def about(entry: dict[str, Any]) -> dict[str, Any]:
    """What the front says of a point."""
    kept = ("id", "device", "objectives", "parameters")
    return {name: entry[name] for name in kept if name in entry}


def seconds_of(history: Path) -> float:
    return sum(json.loads(line)["seconds"] for line in history.read_text().splitlines())


if __name__ == "__main__":
    main(*sys.argv[1:])
