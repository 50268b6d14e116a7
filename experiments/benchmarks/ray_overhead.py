"""What the driver spends per evaluation on Ray: submit, wait, log and tell, beside the evaluation itself.

Evaluations of no length on two workers, against the same study without Ray (baseline, run in turn).

    python -m experiments.benchmarks.ray_overhead
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np

from experiments.benchmarks.results import FOLDER, summary, write
from nas.cluster.executor import RayExecutor
from nas.executor import Executor, SerialExecutor
from nas.log import TrialLog
from nas.objectives import Objective
from nas.searchers import RandomSearch
from nas.space import Space
from nas.study import Study
from nas.tasks import digits
from nas.trial import Candidate, Evaluation
from search_spaces import hierarchical

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OBJECTIVES = (Objective("accuracy", "%", "maximize"), Objective("latency_ms.none", "ms", "minimize"))
TRIALS, ROUNDS = 200, 7


def evaluate(candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
    return Evaluation({"accuracy": 50.0, "latency_ms.none": 1.0}, 100, 1.0)


def main() -> None:
    space = hierarchical.space(digits())
    seconds: dict[str, list[float]] = {"serial": [], "ray": []}
    with RayExecutor(evaluate, workers=2) as ray:
        executors: dict[str, Executor] = {"serial": SerialExecutor(evaluate), "ray": ray}
        run(space, ray)  # workers start and import
        for i in range(ROUNDS):
            for name in sorted(executors, reverse=bool(i % 2)):
                seconds[name].append(run(space, executors[name]))
    per_trial = {name: 1000 * np.array(s) / TRIALS for name, s in seconds.items()}
    overhead = per_trial["ray"] - per_trial["serial"]
    results = {
        "ms per evaluation": {name: summary(ms) for name, ms in per_trial.items()},
        "ms of overhead on Ray": summary(overhead),
        "ratio to serial": summary(per_trial["ray"] / per_trial["serial"]),
    }
    for name, ms in per_trial.items():
        print(f"{name:<8} {np.median(ms):.2f} ms per evaluation of no length")
    print(f"overhead {np.median(overhead):.2f} ms (aim: below 10)")
    print(f"written to {write('ray_overhead', results)}")
    figure, axes = plt.subplots(figsize=(6, 2.5))
    axes.boxplot(list(per_trial.values()), orientation="horizontal", tick_labels=list(per_trial))
    axes.set_xlabel("driver's time per evaluation, ms")
    figure.tight_layout()
    figure.savefig(FOLDER / "ray_overhead.png", dpi=120)


def run(space: Space, executor: Executor) -> float:
    with tempfile.TemporaryDirectory() as folder:
        searcher = RandomSearch(space, OBJECTIVES, seed=0)
        log = TrialLog(Path(folder) / "trials.jsonl", space)
        study = Study(
            "random.none", space, OBJECTIVES, searcher, executor, log, trials=TRIALS, parallel=4, weights="0"
        )
        start = time.perf_counter()
        study.run()
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
