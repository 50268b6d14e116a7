"""Training a supernet once, for all its subnets."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.architecture import architecture_id
from nas.errors import NasError, RunError, told
from nas.files import write_atomically
from nas.supernet import Box, Supernet
from nas.tasks import Batch, Tally, Task
from nas.threads import cpu_threads
from nas.training.batch_norm import synchronised
from nas.training.checkpoint import Checkpoints, save_tensors
from nas.training.distillation import Features, axis_of_classes, feature_loss
from nas.training.feed import Feed, moved, share
from nas.training.gradients import Gradients
from nas.training.group import Alone, Group
from nas.training.guard import Guard
from nas.training.heap import frozen_heap
from nas.training.optimizer import MOMENTS, SlicedAdamW
from nas.training.recipe import Recipe
from nas.training.streams import MODULES, torch_seed
from nas.training.subnets import architectures_of


@dataclass(frozen=True)
class Epoch:
    """What an epoch of training showed: means over its steps, on augmented *train*.

    Attributes:
        first_metric: the task's metric, in its unit, of the first subnet of each step: the largest, where the
            rule begins with it.
        second_metric: of the second, such as the smallest of a sandwich; None where a step has one.
        seconds: that it took, those that it waited for batches among them.
        waiting: share of the time in which training waited for batches.
    """

    epoch: int
    step: int
    loss: float
    first_metric: float
    second_metric: float | None
    learning_rate: float
    seconds: float
    waiting: float = 0.0


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
    with cpu_threads(recipe.threads), frozen_heap():
        if training.step and training.step % training.steps_per_epoch == 0:
            on_weights(training.step // training.steps_per_epoch, training.result())
        for epoch in training.epochs(on_step):
            on_epoch(epoch)
            on_weights(epoch.epoch, training.result())
    if training.group.rank == 0:
        save_tensors(folder / "model.safetensors", training.result(), {"format": "nas.supernet"})
    for name, tensor in training.result().items():
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
    tallies: list[Tally] = field(default_factory=lambda: [Tally(), Tally()])

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> _Sums:
        return cls(**{**data, "tallies": [Tally(*tally) for tally in data["tallies"]]})

    def data(self) -> dict[str, Any]:
        tallies = [(t.total, t.squares, t.n) for t in self.tallies]
        return {**vars(self), "tallies": tallies}


class _Training:
    def __init__(
        self, supernet: Supernet, task: Task, recipe: Recipe, folder: Path, seed: int, group: Group
    ) -> None:
        self.task, self.recipe, self.folder, self.seed, self.group = task, recipe, folder, seed, group
        self.device = _device(recipe.device)
        self.trained = recipe.trained(supernet.space)
        self.supernet = supernet.to(self.device)
        matrices = supernet.matrices()
        groups = recipe.groups({name: name in matrices for name in supernet.bank})
        self.optimizer = SlicedAdamW(supernet.bank, groups)
        self.averages = {n: t.clone() for n, t in supernet.state().items()} if recipe.ema else {}
        teacher = recipe.distillation.teacher
        if isinstance(teacher, (str, Path)):
            from nas.export.subnet import load_subnet  # brings ONNX with it

            teacher = load_subnet(teacher, supernet.build.build, supernet.space.classes)
        self.teacher = None if teacher is None else teacher.to(self.device).eval().requires_grad_(False)
        self.features = Features(recipe.distillation.parts) if recipe.distillation.features else None
        self.checkpoints = Checkpoints(folder / "checkpoints", recipe.keep)
        if (batches := task.batch_count("train")) < 1:
            raise RunError(
                f"`batch_count` of {type(task).__name__} must be 1 or more of train: got {batches}."
            )
        self.steps_per_epoch = math.ceil(batches / recipe.accumulate)
        self.steps = self.steps_per_epoch * recipe.epochs
        self.feed = Feed(task, recipe, seed, self.group, self.device)
        self._require_parts()
        self.guard = Guard(recipe, folder)
        self.sums = _Sums()
        self.step = self._restore()  # that comes next

    def result(self) -> dict[str, Tensor]:
        """The weights that are kept."""
        return self.averages or self.supernet.state()

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

    def _require_parts(self) -> None:
        """Raises RunError where features are to be learnt of parts that there are none of."""
        if self.features is None:
            return
        largest = self.supernet.skeleton(self.supernet.space.largest())
        names = [name for name, _ in largest.named_modules() if name]
        if not any(map(self.features.pattern.fullmatch, names)):
            raise RunError(
                f"`distillation.parts` must fit whole names of modules, such as {names[0]}: "
                f"{self.recipe.distillation.parts!r} fits none."
            )

    def _record(self, epoch: int) -> Epoch:
        """What the epoch showed, in the history too."""
        sums, self.sums = self.sums, _Sums()
        first, others = sums.tallies
        second = others.mean if others.n else None
        rate = self.recipe.rate((self.step - 1) / self.steps)
        waiting = sums.waited / sums.seconds if sums.seconds else 0.0
        record = Epoch(
            epoch, self.step, sums.loss / sums.steps, first.mean, second, rate, sums.seconds, waiting
        )
        if self.group.rank == 0:
            with open(self.folder / "history.jsonl", "a") as history:
                history.write(json.dumps(vars(record)) + "\n")
        return record

    # --- a step -----------------------------------------------------------------------------------

    def _timed_step(self, batches: list[Batch]) -> None:
        start = time.perf_counter()
        self.numbers = batches[0].targets.is_floating_point()  # before mixing makes shares of classes
        with _reproducible(self.seed, self.step, self.group.rank, self.device):
            loss, tallies = self._step([self.feed.prepared(b, self.step, i) for i, b in enumerate(batches)])
        self.sums.loss += loss
        self.sums.steps += 1
        self.sums.tallies = [a + b for a, b in zip(self.sums.tallies, tallies, strict=True)]
        self.step += 1
        self.sums.seconds += time.perf_counter() - start + self.feed.waited
        self.sums.waited, self.feed.waited = self.sums.waited + self.feed.waited, 0.0

    def _step(self, batches: list[Batch]) -> tuple[float, list[Tally]]:
        """One update from all subnets of the step; loss of the first, tallies of the first two."""
        recipe = self.recipe
        drawn = architectures_of(recipe.subnets, self.trained, self.seed, self.step, self.step / self.steps)
        architectures = [a for a in drawn if self.supernet.holds(a)] or drawn
        gradients, others = Gradients(), Gradients()
        tallies, loss = [Tally(), Tally()], 0.0
        images = sum(len(batch.targets) for batch in batches)  # of all processes
        for batch in batches:
            run = self._shared if recipe.subnets.shares_batch else self._each
            found = run(architectures, batch, images, gradients, others if recipe.project else gradients)
            loss += found[0]
            tallies = [a + b for a, b in zip(tallies, found[1], strict=True)]
        loss, tallies = self._added_up(gradients, others, loss, tallies)
        self.guard.require_sane(loss, self.step, architectures[0])
        if recipe.project:
            gradients.without_conflict(others)
            gradients.update(others)
        norm = gradients.norm()
        self.guard.require_finite("norm of the gradient", float(norm), self.step, architectures[0])
        self.guard.passed(loss)
        gradients.scale((recipe.clip / (norm + 1e-6)).clamp(max=1))
        self.optimizer.step(gradients, recipe.rate(self.step / self.steps))
        self._average()
        return loss, tallies

    def _each(
        self, architectures: list[Any], batch: Batch, images: int, largest: Gradients, others: Gradients
    ) -> tuple[float, list[Tally]]:
        """All subnets on this process's share of the batch, one after the other; its part of the mean loss
        over `images`."""
        batch, count = self.feed.own(batch)
        weight = count / images
        distillation, teaches = self.recipe.distillation, self.recipe.subnets.teaches
        outside = self._teacher_answer(batch)
        tallies, first, inside = [Tally(), Tally()], math.nan, None
        taught: dict[str, Tensor] = {}
        for i, architecture in enumerate(architectures):
            boxes = self.supernet.boxes(architecture)
            slices = self.supernet.slices(boxes)
            with self._running(architecture, batch, count), self._features(architecture) as features:
                answer = self.supernet(architecture, *batch.inputs, train=True, slices=slices)
                label_loss = self._label_loss(answer, batch)
                loss = distillation.loss(answer, label_loss, inside, outside, self._classes(answer, batch))
                if taught:
                    loss = loss + distillation.features * feature_loss(features, taught).to(loss.device)
            self.guard.require_finite("loss", float(loss.detach()), self.step, architecture)
            self.guard.require_sane(float(label_loss.detach()), self.step, architecture)
            (loss * (weight / len(architectures))).backward()
            _gather(boxes, slices, others if i else largest)
            if i < 2 and count:
                tallies[i] = self._tally(answer, batch)
            if i == 0:
                first = float(label_loss.detach())
                if teaches:
                    inside, taught = answer.detach(), {n: f.detach() for n, f in features.items()}
        return weight * first, tallies

    def _classes(self, answer: Tensor, batch: Batch) -> int | None:
        """The axis of logits; None where targets are numbers."""
        return None if self.numbers else axis_of_classes(tuple(answer.shape), tuple(batch.targets.shape))

    def _label_loss(self, answer: Tensor, batch: Batch) -> Tensor:
        """The task's loss; once, that of knowing nothing too, by which a loss is known to be a large one."""
        loss = self.task.loss(answer, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"a tensor of {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise RunError(
                f"`loss` of {type(self.task).__name__} must give a tensor of one number, the mean over the "
                f"batch: got {got}."
            )
        if self.guard.nothing is None:
            self.guard.nothing = float(self.task.loss(torch.zeros_like(answer), batch))
        return loss.reshape(())

    def _shared(
        self, architectures: list[Any], batch: Batch, images: int, gradients: Gradients, _: Gradients
    ) -> tuple[float, list[Tally]]:
        """Each subnet on images of its own, of which this process has a share, all in one backward pass; its
        part of the mean loss over `images`. None gets a single image, where batch norms have no variance."""
        architectures = architectures[: max(1, len(batch.targets) // 2)]
        total, tallies, ran = torch.zeros((), device=self.device), [Tally(), Tally()], []
        for i, architecture in enumerate(architectures):
            part = share(batch, i, len(architectures))
            part, count = self.feed.own(part)
            boxes = self.supernet.boxes(architecture)
            slices = self.supernet.slices(boxes)
            outside = self._teacher_answer(part)
            with self._running(architecture, part, count):
                answer = self.supernet(architecture, *part.inputs, train=True, slices=slices)
                label_loss = self._label_loss(answer, part)
                classes = self._classes(answer, part)
                loss = self.recipe.distillation.loss(answer, label_loss, None, outside, classes)
            self.guard.require_sane(float(label_loss.detach()), self.step, architecture)
            self.guard.require_finite("loss", float(loss.detach()), self.step, architecture)
            total = total + loss * (count / images)
            ran.append((boxes, slices))
            if count:
                tallies[0] += self._tally(answer, part)
        total.backward()
        for boxes, slices in ran:
            _gather(boxes, slices, gradients)
        return float(total.detach()), tallies

    def _tally(self, answer: Tensor, batch: Batch) -> Tally:
        task, name = type(self.task).__name__, self.task.metric.name
        try:
            tallies = self.task.tallies(answer.detach().float().cpu(), moved(batch, torch.device("cpu")))
        except NasError:
            raise
        except Exception as error:
            raise RunError(
                f"`tallies` of {task} must give the metrics of a batch, but{told(error)}"
            ) from error
        if not isinstance(found := tallies.get(name), Tally):
            raise RunError(
                f"`tallies` of {task} must give a Tally of its metric, {name}: got {dict(tallies)}."
            )
        return found

    def _teacher_answer(self, batch: Batch) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), self._autocast():
            answer: Tensor = self.teacher(*batch.inputs)
        return answer

    @contextmanager
    def _running(self, architecture: Any, batch: Batch, count: int) -> Iterator[None]:
        """What a subnet runs in, on `count` images of this process; errors of the module or the task become
        one that says where they came up."""
        try:
            with synchronised(self.group, counts=count > 0), self._autocast():
                yield
        except NasError:
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in batch.inputs)
            raise RunError(
                f"The module of architecture {architecture_id(architecture)} and the loss must work for "
                f"inputs {shapes}, but at step {self.step}{told(error)}"
            ) from error

    def _autocast(self) -> torch.autocast:
        precision = self.recipe.precision
        half = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def _features(self, architecture: Any) -> Any:
        if self.features is None:
            return nullcontext({})
        return self.features.of(self.supernet.skeleton(architecture))

    def _added_up(
        self, gradients: Gradients, others: Gradients, loss: float, tallies: list[Tally]
    ) -> tuple[float, list[Tally]]:
        """Adds up what each process has of the means over all images; returns loss and tallies likewise."""
        if self.group.size == 1:
            return loss, tallies
        parts = [loss, *(x for t in tallies for x in (t.total, t.squares, t.n))]
        sums = torch.tensor(parts, device=self.device)
        self.group.add_up([*gradients.values(), *others.values(), sums])
        loss, *both = sums.tolist()
        return loss, [Tally(both[i], both[i + 1], round(both[i + 2])) for i in (0, 3)]

    @torch.no_grad()
    def _average(self) -> None:
        if self.averages:
            decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
            bank = [self.supernet.bank[name].detach() for name in self.averages]
            torch._foreach_lerp_(list(self.averages.values()), bank, 1 - decay)

    # --- checkpoints ------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.group.rank:  # the first writes it
            self.guard.saved(self.checkpoints.path(self.step))
            return
        tensors = dict(self.supernet.state())
        for name, state in self.optimizer.state.items():
            tensors |= {f"{moment}:{name}": state[moment] for moment in MOMENTS}
        tensors |= {f"ema:{name}": tensor for name, tensor in self.averages.items()}
        data = self._counted_by() | {"step": self.step, "begin": self.guard.begin, "sums": self.sums.data()}
        self.guard.saved(self.checkpoints.save(self.step, tensors, data))

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
        self.guard.resumed(path, self.checkpoints.before(path))
        for name, parameter in self.supernet.bank.items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise RunError(
                    f"{path} must fit this supernet, but `{name}` differs: another space wrote it."
                )
            parameter.data.copy_(tensors[name])
            if name in self.averages:
                self.averages[name].copy_(tensors.get(f"ema:{name}", tensors[name]))
            if f"steps:{name}" in tensors:
                state = {moment: tensors[f"{moment}:{name}"] for moment in MOMENTS}
                on_device = {m: t.to(self.device) for m, t in state.items() if m != "steps"}
                self.optimizer.state[name] = on_device | {"steps": state["steps"]}
        self.guard.begin, self.sums = data["begin"], _Sums.of(data["sums"])
        step = int(data["step"])
        if self.group.rank == 0:
            self._trim_history(step // self.steps_per_epoch)
        return step

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


def _gather(boxes: Mapping[str, Box], slices: Mapping[str, Tensor], gradients: Gradients) -> None:
    for name, box in boxes.items():
        if (gradient := slices[name].grad) is not None:
            gradients.add(name, box, gradient)


@contextmanager
def _reproducible(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """PyTorch's random numbers, such as those of dropout, follow from seed and step."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(torch_seed(MODULES, seed, step, rank))
        yield


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
