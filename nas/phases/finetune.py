"""Chosen subnets are trained on as plain models."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor, nn

from nas.architecture import digest
from nas.cluster.tuning import Report, several
from nas.console import bar, console
from nas.errors import RunError
from nas.evaluation import accuracy, interval, latency_objective, statistics, subnet_accuracy
from nas.experiment import Experiment
from nas.files import write_atomically
from nas.objectives import Objective
from nas.phases.run import Run
from nas.phases.verify import Entry, mark_front, own_architecture
from nas.reading import read_run
from nas.supernet import Supernet
from nas.tasks import with_error
from nas.training import Distillation, Diverged, core_seconds, load_tensors, save_tensors, train

INHERITED, FINE_TUNED, SCRATCH = "inherited", "fine-tuned", "from scratch"
FOLDER, INDEX, JUDGED = "finetuned", "finetuned.json", "judged.json"


@dataclass(frozen=True)
class Finetuning:
    """How finalists are trained on.

    Attributes:
        epochs: at most; a training that gets no better ends before.
        learning_rate: its peak, as a share of the supernet's.
        external: share of the loss that the largest subnet teaches.
        patience: epochs without a better score after which training on ends.
        scratch: whether each is trained from nothing too, by the supernet's recipe, to compare.
    """

    epochs: int = 20
    learning_rate: float = 0.2
    external: float = 0.5
    patience: int = 5
    scratch: bool = False

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise RunError(f"`--{name}` must be {least} or more: got {getattr(self, name)}.")
        if not 0 < self.learning_rate <= 10:
            raise RunError(f"`--learning-rate` must be a share of the supernet's: got {self.learning_rate}.")
        if not 0 <= self.external <= 1:
            raise RunError(f"`--external` must be a share from 0 to 1: got {self.external}.")


@dataclass(frozen=True)
class Piece:
    """One training: of which subnet, and how it begins."""

    id: str
    architecture: Any
    kind: str

    @property
    def name(self) -> str:
        return f"{self.id}-{self.kind.replace(' ', '-')}"

    def settings(self, what: Finetuning) -> dict[str, Any]:
        """What its result depends on: from scratch, on the supernet's recipe alone."""
        used = ("epochs", "learning_rate", "external", "patience") if self.kind == FINE_TUNED else ()
        return {name: getattr(what, name) for name in used}


class _Enough(Exception):
    """No better for long enough."""


@dataclass(frozen=True)
class _Judged:
    """What a training has reached, for a call that goes on with it: its last epoch that was judged, its best
    score (higher is better) and that one's epoch, and what it cost."""

    epoch: int = 0
    best: float = -math.inf
    at: int = 0
    core_seconds: float = 0.0

    @classmethod
    def read(cls, path: Path) -> _Judged:
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(vars(self)) + "\n")


@dataclass(frozen=True)
class Shared:
    """What every training needs."""

    experiment: Experiment
    supernet: Supernet
    weights: str
    teacher: nn.Module | None
    what: Finetuning
    folder: Path

    def weights_of(self, piece: Piece) -> Path:
        """The file of a piece's best weights: another one for other settings and another supernet."""
        made_of = json.dumps([self.weights, piece.settings(self.what)], sort_keys=True)
        return self.folder / f"{piece.name}-{digest(made_of)}.safetensors"

    def work(self, piece: Piece) -> Path:
        """Where it keeps its checkpoints."""
        return self.folder / f".{self.weights_of(piece).stem}"


def finetune(run: Run, entries: Sequence[Entry], what: Finetuning, workers: int) -> list[dict[str, Any]]:
    """Trains the subnets of verified `entries` on, several at once; marks the front anew by what each then
    reaches on *select*. Of inherited and fine-tuned weights those are handed out that are better on *search*.

    Writes `finetuned/` (weights) and finetuned.json; what is there for these weights is kept.
    """
    folder, metric = run.directory.path / FOLDER, run.experiment.task.metric
    folder.mkdir(exist_ok=True)
    known = {(r["id"], r["kind"]): r for r in records(run)}
    kinds = (FINE_TUNED, SCRATCH) if what.scratch else (FINE_TUNED,)
    architectures = {e["id"]: own_architecture(run, e) for e in entries}
    every = [Piece(i, a, k) for i, a in architectures.items() for k in kinds]
    pieces = [p for p in every if known.get((p.id, p.kind), {}).get("settings") != p.settings(what)]
    again = sum((p.id, p.kind) in known for p in pieces)
    note = f" ({again} of them again, with other settings)" if again else ""
    console.print(f"Fine-tuning: {len(architectures)} subnets; {len(pieces)} trainings are left to do{note}.")
    failure: RunError | None = None
    if pieces:
        shared = Shared(
            run.experiment, run.supernet, run.weights, _teacher(run, what), what, folder.resolve()
        )
        with bar("Train on", len(pieces)) as progress:

            def ended(piece: Piece, figures: dict[str, Any]) -> None:
                before = known.get((piece.id, piece.kind))
                known[piece.id, piece.kind] = record = _record(run, piece, figures, shared)
                records = json.dumps(list(known.values()), indent=1) + "\n"
                write_atomically(run.directory.path / INDEX, records)
                _mark(run, known)
                shutil.rmtree(shared.work(piece), ignore_errors=True)
                if before:
                    (folder / before["file"]).unlink(missing_ok=True)
                progress.advance(f"{piece.id} {piece.kind}: {metric.text(record['search'])}")

            options: dict[str, Any] = {"workers": workers, "address": run.address, "by_value": run.modules}
            device = run.experiment.training.device
            try:
                several(_train_on, shared, pieces, on_end=ended, device=device, **options)
            except RunError as error:
                failure = error
    _mark(run, known)
    _print(run, known, list(architectures))
    if failure:
        raise failure
    return [known[key] for key in known if key[0] in architectures]


def records(run: Run) -> list[dict[str, Any]]:
    """What was trained on from these weights."""
    path = run.directory.path / INDEX
    if not path.exists():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    for record in found:
        _require_own(record, path)
    return [r for r in found if r["weights"] == run.weights]


def _require_own(record: dict[str, Any], path: Path) -> None:
    """Raises RunError for a record in `path` of a file elsewhere."""
    if (name := str(record.get("file"))) != Path(name).name:
        raise RunError(
            f"{path} must name files of the folder {FOLDER}: got {name!r}. Remove it, and fine-tune again."
        )


def deployed(run: Run, entry: Entry, architecture: Any) -> Supernet:
    """The weights of a point that are handed out: the supernet's, or, where its figures on the front are
    theirs, those that were trained on."""
    record = entry.get("trained", {}).get(FINE_TUNED, {})
    if not record.get("deployed"):
        return run.supernet
    _require_own(record, run.directory.front)
    tensors, _ = load_tensors(run.directory.path / FOLDER / record["file"])
    return run.experiment.alone(architecture, 0).with_state(tensors)


def with_trained(run: Run, device: str) -> list[Entry]:
    """The verified entries of a device, as what was trained on has them."""
    if known := {(r["id"], r["kind"]): r for r in records(run)}:
        _mark(run, known)
    return [entry for entry in run.directory.read_front() if entry["device"] == device]


def as_inherited(experiment: Experiment, entries: Sequence[Entry]) -> list[Entry]:
    """Verified entries as they were before any was trained on. By that points are chosen: which ones a call
    means must not change while it trains them, since one that dies is made again."""
    metric = experiment.task.metric
    known = {m.objective.name: m.objective for m in experiment.measures}
    known[metric.name] = Objective(metric.name, metric.unit, metric.direction)
    found: list[Entry] = copy.deepcopy(list(entries))
    for entry in found:
        if before := entry.get("inherited"):
            entry["objectives"][metric.name], entry["test"] = before["select"], before["test"]
    for device in {e["device"] for e in found}:
        same = [e for e in found if e["device"] == device]
        names = same[0]["objectives"]
        mark_front(same, [known.get(name) or latency_objective(device) for name in names])
    return found


def _teacher(run: Run, what: Finetuning) -> nn.Module | None:
    if not what.external:
        return None
    largest = run.experiment.training.trained(run.experiment.space).largest()
    buffers = statistics(run.supernet, largest, run.experiment.task)
    return run.supernet.extract(largest, buffers=buffers)


def _train_on(shared: Shared, piece: Piece, report: Report) -> None:
    """Trains one subnet, keeps its best weights by *search*, reports that and the core-seconds."""
    experiment, what = shared.experiment, shared.what
    recipe = replace(experiment.training.alone(piece.architecture), threads=1)
    if piece.kind == FINE_TUNED:
        latent = shared.supernet.weights(piece.architecture, quantized=False)
        alone = experiment.alone(piece.architecture, experiment.seed)
        alone = alone.with_weights(latent, piece.architecture)
        temperature = experiment.training.distillation.temperature
        distillation = Distillation(
            in_place=0.0, external=what.external, teacher=shared.teacher, temperature=temperature
        )
        rate = experiment.training.learning_rate * what.learning_rate
        recipe = replace(recipe, epochs=what.epochs, learning_rate=rate, distillation=distillation)
    else:
        alone = experiment.begun(piece.architecture, experiment.seed)
    if not shared.folder.is_dir():
        raise RunError(f"The run directory must be one that all machines see, but one lacks {shared.folder}.")
    work, path = shared.work(piece), shared.weights_of(piece)
    sign = 1 if experiment.task.metric.direction == "maximize" else -1
    judged = _Judged.read(work / JUDGED) if path.exists() else _Judged()  # an earlier call's
    start = core_seconds() - judged.core_seconds

    def judge(epoch: int, weights: Mapping[str, Tensor]) -> None:
        nonlocal judged
        if epoch > judged.epoch:
            judged = replace(judged, epoch=epoch)
            found = subnet_accuracy(alone.with_state(weights), piece.architecture, experiment.task, "search")
            if sign * found.mean > judged.best:
                judged = replace(judged, best=sign * found.mean, at=epoch)
                save_tensors(path, weights, {"score": str(found.mean), "epoch": str(epoch)})
            judged = replace(judged, core_seconds=core_seconds() - start)
            judged.write(work / JUDGED)
        report(judged.epoch, judged.best, judged.core_seconds)
        if piece.kind == FINE_TUNED and judged.epoch - judged.at >= what.patience:
            raise _Enough

    try:
        with suppress(_Enough):
            train(alone, experiment.task, recipe, work, seed=experiment.seed, on_weights=judge)
    except Diverged as error:  # its remedy is for a supernet
        lower = "Lower --learning-rate; or, where" if piece.kind == FINE_TUNED else "Where"
        raise RunError(
            f"{piece.id}, {piece.kind}: {error.fact} {lower} the loss would have come down again, let it "
            f"(`nas train`, with --resume --if-changed continue --set training.explosion=inf)."
        ) from None


def _record(run: Run, piece: Piece, figures: dict[str, Any], shared: Shared) -> dict[str, Any]:
    """What a training reached, with the best weights that it had."""
    task, path = run.experiment.task, shared.weights_of(piece)
    tensors, metadata = load_tensors(path)
    alone = run.experiment.alone(piece.architecture, 0).with_state(tensors)
    module = alone.extract(piece.architecture, buffers=statistics(alone, piece.architecture, task))
    select, test = accuracy(module, task, "select"), accuracy(module, task, "test")
    inherited = subnet_accuracy(run.supernet, piece.architecture, task, "search").mean
    if not (math.isfinite(select.mean) and math.isfinite(test.mean)):
        raise RunError(
            f"The {task.metric.name} of {piece.id} must be finite once trained, but is {select.mean} on "
            f"select and {test.mean} on test. See what `tallies` of {type(task).__name__} gives of batches."
        )
    better = float(metadata["score"]) > inherited
    if task.metric.direction == "minimize":
        better = float(metadata["score"]) < inherited
    return {
        "id": piece.id,
        "kind": piece.kind,
        "weights": run.weights,
        "settings": piece.settings(shared.what),
        "file": path.name,
        "epochs": figures["epoch"],
        "core_seconds": figures["core_seconds"],
        "search": float(metadata["score"]),
        "select": {"value": select.mean, "n": select.n, "std_error": select.std_error},
        "test": {"value": test.mean, "n": test.n, "std_error": test.std_error},
        "test_interval": interval(test, task.metric),
        "deployed": piece.kind == FINE_TUNED and better,
    }


def _mark(run: Run, known: dict[tuple[str, str], dict[str, Any]]) -> None:
    """front.json by what is handed out now."""
    metric = run.experiment.task.metric.name
    before = run.directory.read_front()
    for entry in before:
        kinds = [k for k in (FINE_TUNED, SCRATCH) if (entry["id"], k) in known]
        if not kinds or entry["weights"] != run.weights:
            continue
        entry["trained"] = {k: known[entry["id"], k] for k in kinds}
        entry.setdefault("inherited", {"select": dict(entry["objectives"][metric]), "test": entry["test"]})
        record, inherited = entry["trained"].get(FINE_TUNED), entry["inherited"]
        entry["objectives"][metric], entry["test"] = dict(inherited["select"]), inherited["test"]
        if record and record["deployed"]:
            found, test = record["select"], record["test"]
            entry["objectives"][metric] |= {
                "predicted": record["search"],
                "measured": found["value"],
                "n": found["n"],
                "std_error": found["std_error"],
            }
            entry["test"] = {
                metric: test["value"],
                "n": test["n"],
                "std_error": test["std_error"],
                "interval": record["test_interval"],
            }
    for device in {e["device"] for e in before}:
        same = [e for e in before if e["device"] == device]
        mark_front(same, run.evaluator(run.experiment.device(device)).objectives)
    run.directory.write_front(before)


def _print(run: Run, known: dict[tuple[str, str], dict[str, Any]], ids: Sequence[str]) -> None:
    metric = run.experiment.task.metric
    view = read_run(run.directory.path)
    table = Table(title=f"{metric.name} {metric.unit} on select")
    for column in ("id", INHERITED, FINE_TUNED, "core-seconds", SCRATCH, "core-seconds"):
        table.add_column(column, justify="left" if column == "id" else "right")
    for name in ids:
        entry = next(e for e in view.front if e["id"] == name)
        cells = [with_error(entry["inherited"]["select"]["measured"])]
        for kind in (FINE_TUNED, SCRATCH):
            record = known.get((name, kind))
            cells += (
                [with_error(record["select"]["value"]), f"{record['core_seconds']:.0f}"]
                if record
                else ["", ""]
            )
        table.add_row(name, *cells)
    console.print(table)
    if (seconds := view.training_core_seconds) is not None:
        console.print(
            f"{INHERITED}: the supernet's training took {seconds:,.0f} core-seconds, for all subnets."
        )
