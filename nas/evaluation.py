"""What a candidate is worth: accuracy in the supernet, predicted latency, figures that need no data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.devices.latency import LatencyModel
from nas.objectives import Objective
from nas.space import Additive
from nas.supernet import Supernet
from nas.tasks import Metric, Split, Tally, Task
from nas.threads import cpu_threads
from nas.trial import Candidate, Evaluation

CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class Measure:
    """An objective that needs only the supernet: `of(supernet, architecture)`."""

    objective: Objective
    of: Callable[[Supernet, Any], float]


SIZE_BYTES = Measure(Objective("size_bytes", "B", "minimize"), Supernet.size_bytes)
PARAMETERS = Measure(Objective("parameters", "", "minimize"), Supernet.parameters_of)


@dataclass(frozen=True)
class LatencyPredictor:
    """Latency on a device from genes, in ms: operation counts, then the model fitted on that device."""

    device: str
    model: LatencyModel
    features: Additive

    @property
    def objective(self) -> Objective:
        return latency_objective(self.device)

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """(n, genes) to (n,) milliseconds."""
        return self.model.predict(self.features(genes))


def latency_objective(device: str) -> Objective:
    return Objective(f"latency_ms.{device}", "ms", "minimize")


def accuracy(forward: Callable[..., Tensor], task: Task, split: Split) -> Tally:
    """The task's metric of `forward` over a split, on one thread, so that every worker agrees."""
    tally = Tally()
    with torch.inference_mode(), cpu_threads(1):
        for batch in task.batches(split):
            tally += task.tallies(forward(*batch.inputs), batch)[task.metric.name]
    return tally


def subnet_accuracy(supernet: Supernet, architecture: Any, task: Task, split: Split) -> Tally:
    """The task's metric of a subnet over a split, with batch-norm statistics of its own."""
    return accuracy(answering(supernet, architecture, task), task, split)


def answering(supernet: Supernet, architecture: Any, task: Task) -> Callable[..., Tensor]:
    """A subnet with batch-norm statistics of its own, which takes and gives tensors of the CPU, wherever the
    bank is."""
    buffers = statistics(supernet, architecture, task)

    def answer(*inputs: Tensor) -> Tensor:
        found: Tensor = supernet(architecture, *(x.to(supernet.device) for x in inputs), buffers=buffers)
        return found.to("cpu")

    return answer


def statistics(supernet: Supernet, architecture: Any, task: Task) -> dict[str, Tensor]:
    """Batch-norm statistics of a subnet over the first `CALIBRATION_BATCHES` of *train*, for `buffers=`;
    nothing, and no work, for a subnet that has none. The same wherever it is asked for."""
    batches = (tuple(x.to(supernet.device) for x in batch.inputs) for batch in task.batches("train"))
    with cpu_threads(1):
        return supernet.calibrate(architecture, islice(batches, CALIBRATION_BATCHES))


@dataclass(frozen=True)
class Evaluator:
    """Evaluates candidates of one search; a value that travels to workers whole."""

    supernet: Supernet
    task: Task
    latency: LatencyPredictor
    measures: tuple[Measure, ...] = (SIZE_BYTES,)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        metric = self.task.metric
        quality = Objective(metric.name, metric.unit, metric.direction)
        return (quality, self.latency.objective, *(m.objective for m in self.measures))

    def __call__(self, candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
        """All objectives of a candidate; what is `known` is not computed again."""
        architecture = candidate.architecture
        genes = self.supernet.space.encode(architecture)
        values = {self.latency.objective.name: float(self.latency(genes)[0])}
        values |= {m.objective.name: float(m.of(self.supernet, architecture)) for m in self.measures}
        metric = self.task.metric.name
        if metric in known:
            return Evaluation(values | {metric: known[metric]})
        tally = subnet_accuracy(self.supernet, architecture, self.task, "search")
        return Evaluation(values | {metric: tally.mean}, tally.n, tally.std_error)


def interval(tally: Tally, metric: Metric) -> list[float] | None:
    """95 % interval of a mean: Wilson's (1927) for a percentage, else the normal one; None of one value."""
    z = 1.96
    if tally.std_error is None:
        return None
    if metric.unit != "%":
        return [tally.mean - z * tally.std_error, tally.mean + z * tally.std_error]
    p, n = tally.mean / 100, tally.n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [100 * max(0.0, middle - half), 100 * min(1.0, middle + half)]
