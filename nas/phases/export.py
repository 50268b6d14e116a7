"""Export: from a verified point to an ordinary model on disk."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.console import console
from nas.errors import ExportError, RunError
from nas.evaluation import statistics
from nas.export import DEFAULT, Evidence, Subnet, cards, export_subnet, format_of
from nas.export.onnx import Run as Inference
from nas.layers import Bits
from nas.objectives import Objective
from nas.phases.finetune import deployed
from nas.phases.run import Run
from nas.phases.verify import (
    Entry,
    find_trial,
    measure_beside_references,
    own_architecture,
    verify_trials,
)
from nas.quantize import bits_in
from nas.reading import architecture_of, read_run
from nas.supernet import Supernet
from nas.tasks import Batch, Task
from nas.threads import cpu_threads

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Condition:
    """``latency_ms<=5``: holds for what was measured."""

    name: str
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        match = re.fullmatch(r"\s*(.+?)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*", text)
        try:
            if match:
                return cls(match[1], match[2], float(match[3]))
        except ValueError:
            pass
        raise ExportError(
            f'`--where` must be NAME<=NUMBER (or >=, <, >), such as "latency_ms<=5": got {text!r}.'
        )


def choose_entry(
    entries: Sequence[Entry],
    objectives: Sequence[Objective],
    where: Sequence[str] = (),
    best: str | None = None,
    device: str | None = None,
) -> Entry:
    """The front's point that meets all conditions by measured values and is `best` in one objective.

    Raises:
        ExportError: an unknown or ambiguous name, or conditions that no point meets; tells how near one is.
    """
    goal_name = best or objectives[0].name
    meets = entries_where(entries, where, device, goal_name)
    goal = _resolve(goal_name, meets)
    devices = sorted({e["device"] for e in meets})
    if len(devices) > 1:
        raise ExportError(f"The front of one device must be meant, but there are {devices}. Add --device.")
    signs = {o.name: o.sign for o in objectives}

    def order(entry: Entry) -> tuple[float, ...]:  # the goal, then all else, so that ties are settled
        rest = [n for n in signs if n in entry["objectives"] and n != goal]
        return tuple(signs.get(n, 1) * entry["objectives"][n]["measured"] for n in (goal, *rest))

    return min(meets, key=order)


def entries_where(
    entries: Sequence[Entry],
    where: Sequence[str] = (),
    device: str | None = None,
    goal: str | None = None,
) -> list[Entry]:
    """The front's points that meet all conditions by measured values, and have a value of `goal`.

    Raises:
        ExportError: as of `choose_entry`.
    """
    conditions = [Condition.parse(text) for text in where]
    entries = [e for e in entries if e["front"] and device in (None, e["device"])]
    if not entries:
        of = f" of `{device}`" if device else ""
        raise ExportError(f"There must be a verified front{of} to choose from. `nas verify` makes it.")
    names = {c.name: _resolve(c.name, entries) for c in conditions}
    wanted = [*names.values(), *([_resolve(goal, entries)] if goal else [])]
    entries = [e for e in entries if all(n in e["objectives"] for n in wanted)]
    if not entries:
        raise ExportError(
            f"Conditions and goal must be figures of one device, but no point has all of {', '.join(wanted)}."
        )
    meets = [
        e
        for e in entries
        if all(_OPERATORS[c.sign](e["objectives"][names[c.name]]["measured"], c.limit) for c in conditions)
    ]
    if not meets:
        raise ExportError(
            f"Some point must meet {' and '.join(where)}, but {_reach(entries, conditions, names)}."
        )
    return meets


def export_entry(run: Run, entry: Entry, formats: Sequence[str] = DEFAULT) -> Path:
    """Writes the subnet of a verified point into `exports/ID`, with its card. Returns the folder."""
    for name in formats:
        format_of(name)  # refuses before any work is done
    architecture = own_architecture(run, entry)
    folder = run.directory.exports / entry["id"]
    weights = deployed(run, entry, architecture)
    buffers = statistics(weights, architecture, run.experiment.task)
    device = run.experiment.device(entry["device"])
    module = weights.extract(architecture, buffers=buffers)

    def timed(runs: Sequence[Inference]) -> list[tuple[float, float]]:
        found = measure_beside_references(run, device, runs=runs)
        return list(zip(found.ms.tolist(), found.spread.tolist(), strict=True))

    export_subnet(
        Subnet(
            module,
            entry["architecture"],
            run.experiment.example(2),
            run.experiment.build,
            run.experiment.space.classes,
        ),
        folder,
        formats=formats,
        evidence=_evidence(weights, architecture, buffers, run.experiment.task, device.batch),
        cards=cards(
            entry,
            run=run.directory.read(),
            bits=listed_bits(module, run.supernet.matrices()),
            example=run.experiment.example(1),
            device=run.profile(device).describe(),
            preparation=run.experiment.task.preparation,
        ),
        timed=timed,
        threads=device.runtime.threads,
    )
    run.tracker.artifact(folder / "card.md")
    if "mlflow" in formats:
        uri = run.tracker.register(folder / "mlflow", run.experiment.name, device.name, _tags(entry))
        console.print(
            f"Registered as {uri}. Serve it with\n"
            f"  MLFLOW_TRACKING_URI={run.tracker.uri} mlflow models serve -m {uri} --env-manager local",
            soft_wrap=True,
        )
    return folder


def listed_bits(module: nn.Module, matrices: Collection[str]) -> dict[str, Bits]:
    """What a card lists: bits of matrices, and of all else that has few."""
    return {name: of for name, of in bits_in(module).items() if name in matrices or of != Bits()}


def _tags(entry: Entry) -> dict[str, str]:
    """What the registry shows of a point: what was measured."""
    measured = {name: value["measured"] for name, value in entry["objectives"].items() if "measured" in value}
    return {"id": entry["id"], "device": entry["device"]} | {n: f"{v:g}" for n, v in measured.items()}


MOST_INPUTS = 2000
"""Of *select*, that every file is run on."""


def _evidence(
    supernet: Supernet, architecture: Any, buffers: Mapping[str, Tensor], task: Task, size: int
) -> Evidence:
    """Inputs of *select* in batches of `size`, from the first again where they are fewer, with the subnet's
    answers in the supernet; of the shape of the first."""
    found = list[Batch]()
    for batch in task.batches("select"):
        if not found or batch.inputs[0].shape[1:] == found[0].inputs[0].shape[1:]:
            found.append(batch)
        if sum(len(b.targets) for b in found) >= max(size, MOST_INPUTS):
            break
    inputs, targets = torch.cat([b.inputs[0] for b in found]), torch.cat([b.targets for b in found])
    count = max(size, len(inputs) - len(inputs) % size)
    places = torch.arange(count) % len(inputs)
    parts = zip(inputs[places].split(size), targets[places].split(size), strict=True)
    batches = [Batch((x,), wanted) for x, wanted in parts]
    with torch.inference_mode(), cpu_threads(1):
        answers = [supernet(architecture, *batch.inputs, buffers=buffers) for batch in batches]
    return Evidence(batches, answers, task)


def entry_of(run: Run, architecture_id: str, device: str | None) -> Entry:
    """The verified point of that id, or of enough of its beginning; a trial that was not verified yet is
    verified first."""
    chosen = run.experiment.device(device)
    architecture_id, _ = architecture_of(read_run(run.directory.path), architecture_id)
    verified = [e for e in run.directory.read_front() if e["id"] == architecture_id]
    verified = [e for e in verified if device in (None, e["device"])]
    if len(verified) > 1:
        devices = sorted(e["device"] for e in verified)
        raise ExportError(
            f"One device must be meant, but {architecture_id} was verified on {devices}. Add --device."
        )
    if verified:
        return verified[0]
    trial = find_trial(run, architecture_id, chosen)
    if trial is None:
        raise RunError(
            f"`--id` must name a trial of {run.directory.trials} for {chosen.name}: got {architecture_id!r}."
        )
    entries = verify_trials(run, chosen, [trial])
    return next(e for e in entries if e["id"] == architecture_id)


def _resolve(name: str, entries: Sequence[Entry]) -> str:
    """The full name: `latency_ms` may stand for `latency_ms.pi4` where that is the only one."""
    known = sorted({n for e in entries for n, v in e["objectives"].items() if "measured" in v})
    if name in known:
        return name
    matches = [n for n in known if n.startswith(f"{name}.")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ExportError(
            f"`{name}` must name one device: got {', '.join(matches)}. Add --device, or say which."
        )
    raise ExportError(f"`{name}` must be a figure of the front: it has {', '.join(known)}.")


def _reach(entries: Sequence[Entry], conditions: Sequence[Condition], names: dict[str, str]) -> str:
    """What the front reaches of each condition."""
    parts: list[Any] = []
    for c in conditions:
        values = [e["objectives"][names[c.name]]["measured"] for e in entries]
        parts.append(f"{names[c.name]} goes from {min(values):g} to {max(values):g}")
    return "; ".join(parts) + (" and no point meets all at once" if len(parts) > 1 else "")
