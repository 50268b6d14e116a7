"""What a run directory says, read without torch and without the user's classes.

The report and the Pareto explorer look at runs through this file: at finished ones, at live ones,
and at those whose later files (front, history) do not exist yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import RunError
from nas.log import read_raw
from nas.objectives import Objective, as_costs
from nas.pareto import Front, Scale, nondominated
from nas.rundir import RunDirectory

Record = dict[str, Any]
Point = tuple[float, float]


@dataclass(frozen=True)
class RunView:
    """The files of one run directory as plain JSON values; what is missing is empty."""

    path: Path
    experiment: Record = field(default_factory=dict)
    devices: dict[str, Record] = field(default_factory=dict)
    trials: list[Record] = field(default_factory=list)
    front: list[Record] = field(default_factory=list)
    history: list[Record] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.experiment.get("name", self.path.name))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The experiment's objectives, or, before they are written, those that the trials carry."""
        declared = self.experiment.get("objectives")
        if declared:
            return tuple(Objective(o["name"], o["unit"], o["direction"]) for o in declared)
        names = dict.fromkeys(n for trial in self.trials for n in trial.get("objectives", {}))
        return tuple(_guess(name) for name in names)

    @property
    def training_core_seconds(self) -> float | None:
        """What the supernet's training took; None where its history does not tell."""
        found = [record["core_seconds"] for record in self.history if "core_seconds" in record]
        return sum(found) if found and len(found) == len(self.history) else None

    @property
    def searches(self) -> tuple[str, ...]:
        """Names of the searches, in order of their first trial."""
        return tuple(dict.fromkeys(t["search"] for t in self.trials))

    @property
    def device_names(self) -> tuple[str, ...]:
        """Every device that a profile, a search or the front names."""
        searched = (self.device_of(search) for search in self.searches)
        verified = (entry["device"] for entry in self.front)
        return tuple(dict.fromkeys([*self.devices, *searched, *verified]))

    def device_of(self, search: str) -> str:
        """``"nsga2.pi4"`` ran for ``"pi4"``; device names may hold dots themselves."""
        known = [d for d in self.devices if search == d or search.endswith(f".{d}")]
        return max(known, key=len) if known else search.partition(".")[2] or search

    def searches_of(self, device: str) -> tuple[str, ...]:
        """The searches for `device`, random search last: it is the yardstick, not the subject."""
        names = [s for s in self.searches if self.device_of(s) == device]
        return tuple(sorted(names, key=is_random))

    def objectives_of(self, device: str) -> tuple[Objective, ...]:
        """The objectives that matter on `device`: its own, whose names end in its, and common ones."""
        return tuple(o for o in self.objectives if o.name.partition(".")[2] in ("", device))

    def complete(self, search: str) -> list[Record]:
        """The complete trials of `search`, in order of their numbers."""
        ours = [t for t in self.trials if t["search"] == search and t["state"] == "complete"]
        return sorted(ours, key=lambda t: t["number"])

    def front_of(self, device: str) -> list[Record]:
        """The verified finalists of `device`, the front and what fell behind it."""
        return [entry for entry in self.front if entry["device"] == device]

    def find(self, architecture_id: str) -> Record | None:
        """A trial with this architecture, the last to be logged."""
        return next((t for t in reversed(self.trials) if t["id"] == architecture_id), None)


@dataclass(frozen=True)
class Roles:
    """Which objective a plot shows as height, which as width, which as marker size."""

    quality: Objective
    cost: Objective
    size: Objective | None


def roles(objectives: tuple[Objective, ...], device: str) -> Roles | None:
    """Quality is the first objective, cost the first of the device; None for fewer than two."""
    if len(objectives) < 2:
        return None
    quality, *others = objectives
    timed = [o for o in others if o.name.endswith(f".{device}")]
    cost = (timed or others)[0]
    return Roles(quality, cost, next((o for o in others if o is not cost), None))


def read_run(run_dir: Path | str) -> RunView:
    """Everything that `run_dir` holds so far.

    Raises:
        RunError: there is no such directory, or a file in it is damaged; names the file.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise RunError(f"A run directory must exist: got {path}. `nas run EXPERIMENT` makes one.")
    log = path / "trials.jsonl"
    history = path / "supernet" / "history.jsonl"
    directory = RunDirectory(path)
    return RunView(
        path=path,
        experiment=directory.read() if directory.exists else {},
        devices={p.stem: _read_json(p) for p in sorted((path / "devices").glob("*.json"))},
        trials=read_raw(log) if log.exists() else [],
        front=directory.read_front(),
        history=_read_history(history) if history.exists() else [],
    )


def architecture_of(view: RunView, name: str) -> tuple[str, Record]:
    """Id and JSON of an architecture of the run; `name` is its id, or enough of its beginning.

    Raises:
        RunError: no id begins so, or several do.
    """
    known = {record["id"]: record["architecture"] for record in (*view.trials, *view.front)}
    found = [name] if name in known else sorted(i for i in known if i.startswith(name))
    if len(found) == 1:
        return found[0], known[found[0]]
    if not found:
        raise RunError(
            f"An id must be that of one of the {len(known)} architectures in {view.path}: got {name!r}. "
            f"trials.jsonl and front.json there hold them."
        )
    some = f"{', '.join(found[:5])}{', …' if len(found) > 5 else ''}"
    raise RunError(
        f"An id must mean one architecture: {len(found)} in {view.path} begin with {name!r} ({some}). "
        f"Write more of it."
    )


def hypervolumes(view: RunView, search: str) -> list[tuple[int, float]] | None:
    """(candidates tried, normalised hypervolume) along `search`; None while it has no scale."""
    device = view.device_of(search)
    scale = view.experiment.get("scales", {}).get(device)
    if scale is None:
        return None
    objectives = view.objectives_of(device)
    front = Front(Scale(np.asarray(scale["ideal"], float), np.asarray(scale["nadir"], float)))
    trials = having(objectives, view.complete(search))
    costs = as_costs(objectives, [t["objectives"] for t in trials])
    return [(t["number"] + 1, front.add(cost)) for t, cost in zip(trials, costs, strict=True)]


def nondominated_trials(trials: list[Record], objectives: tuple[Objective, ...]) -> list[Record]:
    """The trials that no other beats in every objective, by their logged (predicted) values."""
    kept = having(objectives, trials)
    if not kept:
        return []
    keep = nondominated(as_costs(objectives, [t["objectives"] for t in kept]))
    return [trial for trial, on_front in zip(kept, keep, strict=True) if on_front]


def having(objectives: Iterable[Objective], trials: list[Record]) -> list[Record]:
    """Those of `trials` that carry every one of `objectives`."""
    names = [o.name for o in objectives]
    return [t for t in trials if all(name in t["objectives"] for name in names)]


def staircase(points: Iterable[Point], x: Objective, y: Objective) -> list[Point]:
    """The corners of the best `y` that each `x` allows: of a larger front, the edge in two axes."""
    corners: list[Point] = []
    for point in sorted(points, key=lambda p: (x.sign * p[0], y.sign * p[1])):
        if not corners or y.sign * point[1] < y.sign * corners[-1][1]:
            corners.append(point)
    return corners


def is_random(search: str) -> bool:
    """Whether its candidates are drawn at random: the yardstick, and the sample that fixes the scale."""
    return search.startswith("random") or is_bounds(search)


def is_bounds(search: str) -> bool:
    """Whether this is the sample that fixes the scale before a search, and no search itself."""
    return search.partition(".")[0] == "bounds"


def title(objective: Objective) -> str:
    """An axis title with the unit: ``latency_ms.pi4`` → ``latency (ms)``."""
    words = objective.name.partition(".")[0].split("_")
    if len(words) > 1 and words[-1].lower() in {objective.unit.lower(), "bytes", "percent"}:
        words = words[:-1]
    name = " ".join(words)
    return f"{name} ({objective.unit})" if objective.unit else name


def value(entry: Mapping[str, Any], objective: Objective, kind: str) -> float | None:
    """The `kind` ("predicted" or "measured") number of a front entry, None where it has none."""
    number = entry["objectives"].get(objective.name, {}).get(kind)
    return None if number is None else float(number)


def point(entry: Mapping[str, Any], x: Objective, y: Objective, kind: str) -> Point | None:
    """Both numbers of a front entry, or None where it lacks one."""
    across, up = value(entry, x, kind), value(entry, y, kind)
    return None if across is None or up is None else (across, up)


def named(view: RunView, name: str) -> Objective:
    """The objective of this name; also for figures that are measured without being traded off."""
    return next((o for o in view.objectives if o.name == name), _guess(name))


def _guess(name: str) -> Objective:
    if name.partition(".")[0] == "accuracy":
        return Objective(name, "%", "maximize")
    units = {"ms": "ms", "bytes": "B"}
    return Objective(name, units.get(name.partition(".")[0].rpartition("_")[2], ""), "minimize")


def _read_json(path: Path) -> Record:
    try:
        return _object(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} must be JSON, but {error}. Run the phase that writes it again.") from None


def _object(text: str) -> Record:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"it holds {found!r} and no object")
    return found


def _read_history(path: Path) -> list[Record]:
    """The training curve. A line that is being written is left for the next reader."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [_object(line) for line in lines if line]
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} must hold a JSON object a line, but {error}.") from None
