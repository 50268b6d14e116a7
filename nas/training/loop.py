"""Training a supernet once, for all its subnets."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nas.architecture import to_json
from nas.errors import RunError
from nas.files import write_atomically
from nas.supernet import Supernet
from nas.tasks import Batch, Tally, Task
from nas.threads import cpu_threads
from nas.training.checkpoint import Checkpoints, load_tensors, save_tensors
from nas.training.feed import Feed
from nas.training.group import Alone, Group
from nas.training.guard import Diverged, Guard
from nas.training.heap import frozen_heap
from nas.training.prefetch import core_seconds
from nas.training.recipe import Recipe
from nas.training.update import Update

DIVERGED = "diverged.json"
RUINED = ".ruined"


@dataclass(frozen=True)
class Epoch:
    """What an epoch of training showed: means over its steps, on augmented *train*.

    Attributes:
        first_metric: the task's metric, in its unit, of the first subnet of each step: the largest, where the
            rule begins with it.
        second_metric: of the second, such as the smallest of a sandwich; None where a step has one.
        seconds: that it took, those that it waited for batches among them.
        waiting: share of the time in which training waited for batches.
        core_seconds: processor time, of all processes, since the last epoch ended.
    """

    epoch: int
    step: int
    loss: float
    first_metric: float
    second_metric: float | None
    learning_rate: float
    seconds: float
    waiting: float = 0.0
    core_seconds: float = 0.0


def train(
    supernet: Supernet,
    task: Task,
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_step: Callable[[int], None] = lambda _: None,
    on_weights: Callable[[int, Mapping[str, Tensor]], None] = lambda _epoch, _weights: None,
    group: Group | None = None,
) -> Supernet:
    """Trains `supernet` in place and returns it. A checkpoint in `folder` is continued from; the result
    equals that of an uninterrupted training, bit by bit.

    Writes `checkpoints/`, `history.jsonl` and, at the end, `model.safetensors` into `folder`.

    Args:
        on_weights: takes the number of each epoch that has ended, and the weights that would be kept if it
            were the last (no copy); where the training goes on from the end of an epoch, of that one too.
        group: fellow processes, each of which calls this; the first of them writes.

    Raises:
        RunError: no whole checkpoint where there are some, one of another supernet, or a loss that is not
            finite or explodes (names step, architecture and the last good checkpoint).
    """
    training = _Training(supernet, task, recipe, folder, seed, group or Alone())
    with cpu_threads(recipe.threads), frozen_heap(), closing(training.feed):
        if training.step and training.step % training.steps_per_epoch == 0:
            on_weights(training.step // training.steps_per_epoch, training.update.result())
        for epoch in training.epochs(on_step):
            on_epoch(epoch)
            on_weights(epoch.epoch, training.update.result())
    if training.group.rank == 0:
        save_tensors(folder / "model.safetensors", training.update.result(), {"format": "nas.supernet"})
        training.forget_what_diverged()
    for name, tensor in training.update.result().items():
        supernet.bank[name].data.copy_(tensor)
    supernet.to("cpu")
    return supernet


@dataclass
class _Sums:
    """Of the part of an epoch that is over; goes into checkpoints."""

    loss: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    core_seconds: float = 0.0
    tallies: list[Tally] = field(default_factory=lambda: [Tally(), Tally()])

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> _Sums:
        return cls(**{**data, "tallies": [Tally(*tally) for tally in data["tallies"]]})

    def data(self) -> dict[str, Any]:
        tallies = [(t.total, t.squares, t.n) for t in self.tallies]
        return {**vars(self), "tallies": tallies}


class _Training:
    """Steps, epochs, and the state from which they go on."""

    def __init__(
        self, supernet: Supernet, task: Task, recipe: Recipe, folder: Path, seed: int, group: Group
    ) -> None:
        self.task, self.recipe, self.folder, self.seed, self.group = task, recipe, folder, seed, group
        if not isinstance(batches := task.batch_count("train"), (int, np.integer)) or batches < 1:
            raise RunError(
                f"`batch_count` of {type(task).__name__} must be 1 or more of train: got {batches}."
            )
        self.steps_per_epoch = math.ceil(batches / recipe.accumulate)
        self.steps = self.steps_per_epoch * recipe.epochs
        self.feed = Feed(task, recipe, seed, group, recipe.torch_device())
        self.guard = Guard(recipe)
        self.update = Update(supernet, task, recipe, self.feed, self.guard, self.steps)
        self.checkpoints = Checkpoints(folder / "checkpoints", recipe.keep)
        self.sums = _Sums()
        self.untried: Path | None = None  # a checkpoint of the weights of now
        self.spent = core_seconds()
        self.step = self._restore()  # that comes next

    def epochs(self, on_step: Callable[[int], None]) -> Iterator[Epoch]:
        saved = time.monotonic()
        while self.step < self.steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            record = None
            with closing(self.feed.groups(epoch, done)) as groups:
                for group in groups:
                    self._timed_step(group)
                    last = self.step == (epoch + 1) * self.steps_per_epoch
                    record = self._record(epoch + 1) if last else None
                    if self.step == self.steps or time.monotonic() - saved > self.recipe.checkpoint_seconds:
                        self._save()
                        saved = time.monotonic()
                    on_step(self.step)
            if record is None:
                raise self._miscounted()
            yield record

    def _miscounted(self) -> RunError:
        task, said = type(self.task).__name__, self.task.batch_count("train")
        return RunError(
            f"`batch_count` of {task} must be the number of batches of an epoch: it says {said} of train, "
            f"and `batches` gives another number (see step {self.step})."
        )

    def _record(self, epoch: int) -> Epoch:
        """What the epoch showed, in the history too."""
        sums, self.sums = self.sums, _Sums()
        first, others = sums.tallies
        second = others.mean if others.n else None
        rate = self.recipe.rate((self.step - 1) / self.steps)
        waiting = sums.waited / sums.seconds if sums.seconds else 0.0
        record = Epoch(
            epoch=epoch,
            step=self.step,
            loss=sums.loss / sums.steps,
            first_metric=first.mean,
            second_metric=second,
            learning_rate=rate,
            seconds=sums.seconds,
            waiting=waiting,
            core_seconds=sums.core_seconds,
        )
        if self.group.rank == 0:
            with open(self.folder / "history.jsonl", "a") as history:
                history.write(json.dumps(vars(record)) + "\n")
        return record

    def _timed_step(self, batches: list[Batch]) -> None:
        start = time.perf_counter()
        try:
            loss, tallies = self.update(batches, self.step)
        except Diverged as error:
            error.args = (self._what_to_do(error, batches),)
            raise
        self.untried = None
        self.sums.loss += loss
        self.sums.steps += 1
        self.sums.tallies = [a + b for a, b in zip(self.sums.tallies, tallies, strict=True)]
        self.step += 1
        self.sums.seconds += time.perf_counter() - start + self.feed.waited
        self.sums.waited, self.feed.waited = self.sums.waited + self.feed.waited, 0.0
        before, self.spent = self.spent, core_seconds()
        self.sums.core_seconds += self.group.size * (self.spent - before)

    # --- checkpoints ------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.group.rank:  # the first writes it
            self.untried = self.checkpoints.path(self.step)
            return
        told = {"begin": self.guard.begin, "nothing": self.guard.nothing, "sums": self.sums.data()}
        data = self._counted_by() | {"step": self.step} | told
        self.untried = self.checkpoints.save(self.step, self.update.tensors(), data)

    def forget_what_diverged(self) -> None:
        """Removes what earlier tries put aside: the training went well in the end."""
        for path in (self.folder / DIVERGED, *self.checkpoints.folder.glob(f"*{RUINED}")):
            path.unlink(missing_ok=True)

    def _restore(self) -> int:
        """Loads the newest whole checkpoint, if there is one; returns the steps that it has behind it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.group.rank == 0:
            self.checkpoints.tidy()
        found = self.checkpoints.load()
        if found is None:
            if self.group.rank == 0:
                (self.folder / "history.jsonl").unlink(missing_ok=True)
            return 0
        path, tensors, data = found
        self._require_counted_alike(path, data)
        self.untried = path
        self.update.restore(tensors, path)
        self.guard.begin, self.guard.nothing = data["begin"], data.get("nothing")
        self.sums = _Sums.of(data["sums"])
        step = int(data["step"])
        if self.group.rank == 0:
            self._trim_history(step // self.steps_per_epoch)
        return step

    def _what_to_do(self, error: Diverged, batches: list[Batch]) -> str:
        """What failed, and what to do about it. A checkpoint is a good one if what failed is sane with its
        weights; those that are newer are put aside, so that the training goes on from that one."""
        where, aside, good = self.folder / DIVERGED, list[Path](), None
        where.write_text(json.dumps(to_json(error.architecture), indent=1) + "\n")
        for path in reversed(self.checkpoints.paths()):
            if path != self.untried:
                with suppress(RunError):  # a damaged one
                    tensors, _ = load_tensors(path)
                    if self.update.sane_with(tensors, path, error.architecture, batches, self.step):
                        good = path
                        break
            aside.append(path)
        law = f"{str(error).removesuffix('.')} ({where})"
        lower = f"Lower training.learning_rate, which is {self.recipe.learning_rate:g}"
        if good is None:
            again = f", and remove {self.checkpoints.folder}, to start again" if aside else ""
            return f"{law}. There is no good checkpoint. {lower}{again}; or look at what is in the batch."
        for path in aside:
            with suppress(FileNotFoundError):  # another process may have put it aside
                path.rename(f"{path}{RUINED}")
        names = ", ".join(f"{path.name}{RUINED}" for path in aside)
        put = f", and what led here is put aside as {names}" if aside else ""
        return f"{law}. The last good checkpoint is {good}{put}. {lower}."

    def _counted_by(self) -> dict[str, int]:
        """What gives a number of steps its meaning; goes into checkpoints."""
        return {"seed": self.seed, "steps_per_epoch": self.steps_per_epoch}

    def _require_counted_alike(self, path: Path, data: Mapping[str, Any]) -> None:
        """Raises RunError for a checkpoint from which these steps cannot go on."""
        for name, now in self._counted_by().items():
            if (before := data.get(name, now)) != now:
                raise RunError(
                    f"{path} must be gone on with by the same {name}, {before}: got {now}. Undo the change "
                    f"(of seed, batch size or training.accumulate), or remove {path.parent} to start again."
                )
        if data["step"] > self.steps:
            raise RunError(
                f"{path} must be of a training that goes on, but has {data['step']} steps, of which there "
                f"are now {self.steps}. Raise training.epochs again, or remove {path.parent} to start again."
            )

    def _trim_history(self, epochs: int) -> None:
        path = self.folder / "history.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        write_atomically(path, "".join(lines[:epochs]))
