"""Phase 4: verify finalists, as plain modules, on data and a clock that the search never saw."""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from nas.console import bar, console
from nas.devices import Device, Measured, measure
from nas.errors import RunError
from nas.evaluation import accuracy, interval, latency_objective, statistics
from nas.log import TrialLog
from nas.objectives import Objective, as_costs
from nas.pareto import crowding_distance, nondominated
from nas.phases.run import Run
from nas.phases.search import search_name
from nas.tasks import Metric, Tally, with_error
from nas.trial import Trial

REFERENCES = 8  # profiled subnets that are timed again beside the finalists, to anchor milliseconds
Entry = dict[str, Any]


def verify_front(run: Run, device: Device) -> list[Entry]:
    """Extracts, exports, evaluates and times the finalists of a device's search; writes front.json.

    Returns the entries of this device. Those already verified for these weights are kept.

    Raises:
        RunError: there is no search to verify.
    """
    trials = [t for t in _complete(run) if t.search == search_name(run, device)]
    if not trials:
        raise RunError(
            f"{run.directory.trials} must hold trials of `{search_name(run, device)}`, but has none. "
            f"`nas search {run.source.name} --device {device.name}` makes them."
        )
    return verify_trials(run, device, _finalists(run, device, trials))


def verify_trials(run: Run, device: Device, trials: Sequence[Trial]) -> list[Entry]:
    """Verifies `trials` for a device and joins them with what is in front.json."""
    before = run.directory.read_front()
    known = {e["id"]: e for e in before if e["device"] == device.name and e["weights"] == run.weights}
    missing = [trial for trial in trials if trial.id not in known]
    if missing:
        known |= {entry["id"]: entry for entry in _verify(run, device, missing)}
    entries = list(known.values())
    objectives = run.evaluator(device).objectives
    mark_front(entries, objectives)
    entries.sort(key=lambda e: e["objectives"][f"latency_ms.{device.name}"]["measured"])
    run.directory.write_front([e for e in before if e["device"] != device.name] + entries)
    return entries


def print_front(run: Run, device: Device, entries: Sequence[Entry]) -> None:
    """The front as a table, and the command that exports the point that we would take."""
    latency = f"latency_ms.{device.name}"
    metric = run.experiment.task.metric
    table = Table(title=f"Verified front, {device.name} (predicted → measured)")
    table.add_column("id")
    for column in (f"{metric.name} {metric.unit}", "± se", "latency ms", "size kB", "parameters"):
        table.add_column(column, justify="right")
    front = [e for e in entries if e["front"]]
    for entry in front:
        quality, time, size = (entry["objectives"].get(n, {}) for n in (metric.name, latency, "size_bytes"))
        table.add_row(
            entry["id"],
            f"{with_error(quality['predicted'])} → {with_error(quality['measured'])}",
            "" if quality["std_error"] is None else f"{quality['std_error']:.2g}",
            f"{time['predicted']:.4f} → {time['measured']:.4f}",
            f"{size['measured'] / 1e3:.1f}" if size else "",
            f"{entry['objectives']['parameters']['measured']:,}",
        )
    console.print(table)
    chosen = recommended(front, metric.name, latency, metric.direction)
    limit = _rounded_up(chosen["objectives"][latency]["measured"])
    console.print(
        f"Recommended: {chosen['id']}, the fastest within one standard error of the best. Export it with"
    )
    console.print(
        f"  nas export {shlex.quote(str(run.directory.path))} --device {device.name} "
        f'--where "latency_ms<={limit:g}" '
        f"--best {shlex.quote(metric.name)}"
    )


def recommended(front: Sequence[Entry], metric: str, latency: str, direction: str) -> Entry:
    """The fastest point within one standard error of the best (the one-standard-error rule of
    Breiman et al., 1984, §3.4.3)."""
    sign = 1 if direction == "maximize" else -1
    best = max(front, key=lambda e: sign * e["objectives"][metric]["measured"])["objectives"][metric]
    error = best["std_error"] or 0.0
    near = [e for e in front if sign * (best["measured"] - e["objectives"][metric]["measured"]) <= error]
    return min(near, key=lambda e: e["objectives"][latency]["measured"])


def _verify(run: Run, device: Device, trials: Sequence[Trial]) -> list[Entry]:
    task, supernet = run.experiment.task, run.supernet
    modules, tallies, sound, faults = [], [], list[Trial](), list[str]()
    with bar(f"Verify for {device.name}", len(trials)) as progress:
        for trial in trials:
            buffers = statistics(supernet, trial.architecture, task)
            module = supernet.extract(trial.architecture, buffers=buffers)
            select, test = accuracy(module, task, "select"), accuracy(module, task, "test")
            progress.advance()
            if fault := _not_finite(task.metric, select, test):
                console.print(f"{trial.id} is left out: {fault}.")
                faults.append(fault)
                continue
            tallies.append((select, test))
            modules.append(module)
            sound.append(trial)
    if not sound:
        raise RunError(
            f"A subnet must have a finite metric to be verified, but {trials[0].id} has none: {faults[0]}. "
            f"See what `tallies` of {type(task).__name__} gives of the batches of that split, such as a last "
            f"one of a single example."
        )
    measured = measure_beside_references(run, device, modules)
    return [
        _entry(run, device, trial, module, *tally, measured, i)
        for i, (trial, module, tally) in enumerate(zip(sound, modules, tallies, strict=True))
    ]


def _not_finite(metric: Metric, select: Tally, test: Tally) -> str | None:
    """What of a subnet says nothing."""
    for split, tally in (("select", select), ("test", test)):
        if not math.isfinite(tally.mean):
            return f"{metric.name} on {split} is {tally.mean}"
    return None


def measure_beside_references(
    run: Run,
    device: Device,
    modules: Sequence[torch.nn.Module] = (),
    runs: Sequence[Callable[[], object]] = (),
) -> Measured:
    """Times modules, and inferences that are loaded already, together with some that were profiled, so that a
    slower hour shows as drift."""
    experiment, profile = run.experiment, run.profile(device)
    references = profile.references(REFERENCES)
    build = experiment.at_bits()
    built = [build(experiment.space.from_json(s.architecture)) for s in references]
    with (
        tempfile.TemporaryDirectory() as folder,
        bar(f"Time on {device.name}", len(modules) + len(built)) as progress,
    ):
        return measure(
            device,
            modules,
            experiment.example(device.batch),
            references=built,
            references_ms=[s.latency_ms for s in references],
            rounds=experiment.profiling.rounds,
            seed=experiment.seed,
            runs=runs,
            folder=Path(folder),
            progress=progress.advance,
        )


def _entry(
    run: Run,
    device: Device,
    trial: Trial,
    module: torch.nn.Module,
    select: Tally,
    test: Tally,
    measured: Measured,
    i: int,
) -> Entry:
    metric, latency = run.experiment.task.metric, latency_objective(device.name).name
    objectives: dict[str, dict[str, Any]] = {
        metric.name: {
            "predicted": trial.objectives[metric.name],
            "measured": select.mean,
            "n": select.n,
            "std_error": select.std_error,
        },
        latency: {
            "predicted": trial.objectives[latency],
            "measured": float(measured.ms[i]),
            "spread": float(measured.spread[i]),
        },
    }
    for m in run.experiment.measures:
        name = m.objective.name
        value = m.of(run.supernet, trial.architecture)
        objectives[name] = {"predicted": trial.objectives[name], "measured": value}
    parameters = sum(p.numel() for p in module.parameters())
    objectives.setdefault("parameters", {"measured": parameters})
    return {
        "id": trial.id,
        "architecture": run.experiment.space.to_json(trial.architecture),
        "device": device.name,
        "search": trial.search,
        "weights": trial.weights,
        "front": False,
        "drift": measured.drift,
        "objectives": objectives,
        "test": {
            metric.name: test.mean,
            "n": test.n,
            "std_error": test.std_error,
            "interval": interval(test, metric),
        },
    }


def _complete(run: Run) -> list[Trial]:
    if not run.directory.trials.exists():
        return []
    log = TrialLog(run.directory.trials, run.experiment.space)
    return [t for t in log.read() if t.state == "complete" and t.weights == run.weights]


def find_trial(run: Run, architecture_id: str, device: Device) -> Trial | None:
    """A complete trial of this architecture that carries the device's latency."""
    latency = latency_objective(device.name).name
    found = (t for t in _complete(run) if t.id == architecture_id and latency in t.objectives)
    return next(found, None)


def _finalists(run: Run, device: Device, trials: Sequence[Trial]) -> list[Trial]:
    """At most `search.finalists` trials: non-dominated ones, and `hopeful` ones for what places these leave,
    at least a quarter; of both those that stand most alone."""
    objectives, limit = run.evaluator(device).objectives, run.experiment.search.finalists
    costs = as_costs(objectives, [t.objectives for t in trials])
    _, first = np.unique(costs, axis=0, return_index=True)  # equal figures: the earliest trial
    first = np.sort(first)
    trials, costs = [trials[i] for i in first], costs[first]
    front = nondominated(costs)
    metric = [o.name for o in objectives].index(run.experiment.task.metric.name)
    errors = np.array([t.std_error or 0.0 for t in trials])
    others = hopeful(costs, errors, metric) & ~front
    chosen = _alone(costs, front, limit - min(int(others.sum()), limit // 4))
    chosen += _alone(costs, others, limit - len(chosen))
    return [trials[i] for i in chosen]


def hopeful(costs: np.ndarray, errors: np.ndarray, column: int) -> np.ndarray:
    """Which of `costs` (n, objectives) none dominates once its own entry in `column` is an error lower: bool
    (n,).

    The best of many is in part a lucky one (the optimizer's curse, Smith & Winkler, 2006): what it dominates
    by less than its error may well be better, and deserves a second look.
    """
    better = costs.copy()
    better[:, column] -= errors
    dominated = [bool(((costs <= row).all(1) & (costs < row).any(1)).any()) for row in better]
    return ~np.array(dominated, dtype=bool)


def _alone(costs: np.ndarray, among: np.ndarray, count: int) -> list[int]:
    """Indices of `count` of the rows marked in `among` that stand most alone."""
    rows = np.flatnonzero(among)
    order = np.argsort(-crowding_distance(costs[rows]), kind="stable")
    return [int(i) for i in rows[order][:count]]


def own_architecture(run: Run, entry: Entry) -> Any:
    """The architecture of a verified entry.

    Raises:
        RunError: it was verified with other weights, or is not what its id says.
    """
    if entry["weights"] != run.weights:
        raise RunError(
            f"{entry['id']} must belong to the weights in {run.directory.supernet}, but was verified with "
            f"{entry['weights']}; they are {run.weights}. Verify the front again."
        )
    architecture = run.experiment.space.from_json(entry["architecture"])
    if entry["id"] != (name := run.experiment.space.id(architecture)):
        raise RunError(
            f"{run.directory.front} must name architectures by their own id: got {entry['id']} for {name}. "
            f"Verify the front again."
        )
    return architecture


def mark_front(entries: Sequence[Entry], objectives: Sequence[Objective]) -> None:
    """Sets `front`: non-dominated by what was measured."""
    measured = [{o.name: entry["objectives"][o.name]["measured"] for o in objectives} for entry in entries]
    for entry, keep in zip(entries, nondominated(as_costs(objectives, measured)), strict=True):
        entry["front"] = bool(keep)


def _rounded_up(value: float) -> float:
    """To four significant digits, never below `value`, so that a limit admits the point it names."""
    step = 10.0 ** (np.floor(np.log10(value)) - 3)
    return float(np.ceil(value / step - 1e-9) * step)
