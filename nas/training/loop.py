"""Training a supernet once, for all its subnets."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nas.errors import RunError
from nas.supernet import Box, Supernet
from nas.tasks import Batch, Library, Tally, Task
from nas.threads import cpu_threads
from nas.training.checkpoint import Checkpoints, save_tensors
from nas.training.distillation import Features, feature_loss
from nas.training.gradients import Gradients
from nas.training.group import Alone, Group
from nas.training.heap import frozen_heap
from nas.training.optimizer import MOMENTS, SlicedAdamW
from nas.training.prefetch import Prefetched
from nas.training.recipe import Recipe

FIRST_STEPS = 10  # whose mean loss an explosion is measured by


@dataclass(frozen=True)
class Epoch:
    """What an epoch of training showed: means over its steps, accuracy in % on augmented *train*.

    Attributes:
        first_accuracy: of the first subnet of each step: the largest, where the rule begins with it.
        second_accuracy: of the second, such as the smallest of a sandwich; None where a step has one.
        waiting: share of the time in which training waited for batches.
    """

    epoch: int
    step: int
    loss: float
    first_accuracy: float
    second_accuracy: float | None
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
    group: Group | None = None,
) -> Supernet:
    """Trains `supernet` in place and returns it. A checkpoint in `folder` is continued from; the result
    equals that of an uninterrupted training, bit by bit.

    Writes `checkpoints/`, `history.jsonl` and, at the end, `model.safetensors` into `folder`.

    Args:
        group: fellow processes, each of which calls this; the first of them writes.

    Raises:
        RunError: no whole checkpoint where there are some, one of another supernet, or a loss that is not
            finite or explodes (names step, architecture and the last good checkpoint).
    """
    training = _Training(supernet, task, recipe, folder, seed, group or Alone())
    with cpu_threads(recipe.threads), frozen_heap():
        for epoch in training.epochs(on_step):
            on_epoch(epoch)
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

            teacher = load_subnet(teacher, supernet.build, supernet.space.classes)
        self.teacher = None if teacher is None else teacher.to(self.device).eval().requires_grad_(False)
        self.features = Features(recipe.distillation.parts) if recipe.distillation.features else None
        self.checkpoints = Checkpoints(folder / "checkpoints", recipe.keep)
        self.steps_per_epoch = math.ceil(task.batch_count("train") / recipe.accumulate)
        self.steps = self.steps_per_epoch * recipe.epochs
        self.begin: list[float] = []  # losses of the first steps
        self.sums = _Sums()
        self.saved: Path | None = None
        self.step = self._restore()  # that comes next

    def result(self) -> dict[str, Tensor]:
        """The weights that are kept."""
        return self.averages or self.supernet.state()

    def epochs(self, on_step: Callable[[int], None]) -> Iterator[Epoch]:
        saved = time.monotonic()
        while self.step < self.steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            with closing(self._batches(epoch, done)) as batches:
                for group in batches:
                    self._timed_step(group)
                    last = self.step == (epoch + 1) * self.steps_per_epoch
                    record = self._record(epoch + 1) if last else None
                    if self.step == self.steps or time.monotonic() - saved > self.recipe.checkpoint_seconds:
                        self._save()
                        saved = time.monotonic()
                    on_step(self.step)
            assert record is not None
            yield record

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

    # --- batches ----------------------------------------------------------------------------------

    def _batches(self, epoch: int, done: int) -> Generator[list[Batch]]:
        """What is left of an epoch, as many batches as an update takes at a time."""
        count = self.recipe.accumulate
        source = self.task.batches("train", seed=self.seed, epoch=epoch, first=done * count)
        # What draws from PyTorch's own numbers must not do so while a step does.
        batches = source if isinstance(getattr(self.task, "augment", None), Library) else Prefetched(source)
        try:
            while group := self._waited(lambda: list(islice(batches, count))):
                yield group
        finally:
            if isinstance(batches, Prefetched):
                batches.close()

    def _waited(self, take: Callable[[], list[Batch]]) -> list[Batch]:
        start = time.perf_counter()
        taken = take()
        self.sums.waited += time.perf_counter() - start
        return taken

    def _prepared(self, batch: Batch, place: int) -> Batch:
        """Mixed, scaled, this process's share of it, on the device."""
        recipe, rng = self.recipe, np.random.default_rng((self.seed, self.step, place))
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        if recipe.mix:
            batch = recipe.mix(batch, _classes(self.task), generator)
        if recipe.resolutions:
            side = recipe.resolutions[
                np.random.default_rng((self.seed, self.step)).integers(len(recipe.resolutions))
            ]
            batch = Batch((_scaled(batch.inputs[0], side), *batch.inputs[1:]), batch.targets)
        return _to(_share(batch, self.group.rank, self.group.size), self.device)

    # --- a step -----------------------------------------------------------------------------------

    def _timed_step(self, batches: list[Batch]) -> None:
        start = time.perf_counter()
        with _reproducible(self.seed, self.step, self.group.rank, self.device):
            loss, tallies = self._step([self._prepared(batch, i) for i, batch in enumerate(batches)])
        self.sums.loss += loss
        self.sums.steps += 1
        self.sums.tallies = [a + b for a, b in zip(self.sums.tallies, tallies, strict=True)]
        self.step += 1
        self.sums.seconds += time.perf_counter() - start

    def _step(self, batches: list[Batch]) -> tuple[float, list[Tally]]:
        """One update from all subnets of the step; loss of the first, tallies of the first two."""
        recipe = self.recipe
        drawn = recipe.subnets.at(self.trained, self.seed, self.step, self.step / self.steps)
        architectures = [a for a in drawn if self.supernet.holds(a)] or drawn
        gradients, others = Gradients(), Gradients()
        tallies, loss = [Tally(), Tally()], 0.0
        images = sum(len(batch.targets) for batch in batches)
        for batch in batches:
            weight = len(batch.targets) / images
            run = self._shared if recipe.subnets.shares_batch else self._each
            found = run(architectures, batch, weight, gradients, others if recipe.project else gradients)
            loss += weight * found[0]
            tallies = [a + b for a, b in zip(tallies, found[1], strict=True)]
        loss = self._added_up(gradients, others, images, loss)
        self._require_sane(loss, architectures[0], "loss")
        if recipe.project:
            gradients.without_conflict(others)
            gradients.update(others)
        norm = gradients.norm()
        self._require_sane(float(norm), architectures[0], "norm of the gradient", explosion=math.inf)
        gradients.scale((recipe.clip / (norm + 1e-6)).clamp(max=1))
        self.optimizer.step(gradients, recipe.rate(self.step / self.steps))
        self._average()
        return loss, tallies

    def _each(
        self, architectures: list[Any], batch: Batch, weight: float, largest: Gradients, others: Gradients
    ) -> tuple[float, list[Tally]]:
        """All subnets on the whole batch, one after the other."""
        distillation, teaches = self.recipe.distillation, self.recipe.subnets.teaches
        outside = self._teacher_answer(batch)
        tallies, first, inside = [Tally(), Tally()], math.nan, None
        taught: dict[str, Tensor] = {}
        for i, architecture in enumerate(architectures):
            boxes = self.supernet.boxes(architecture)
            slices = self.supernet.slices(boxes)
            with self._autocast(), self._features(architecture) as features:
                answer = self.supernet(architecture, *batch.inputs, train=True, slices=slices)
                label_loss = self.task.loss(answer, batch)
                loss = distillation.loss(answer, label_loss, inside, outside)
                if taught:
                    loss = loss + distillation.features * feature_loss(features, taught).to(loss.device)
            self._require_sane(float(loss.detach()), architecture, "loss", explosion=math.inf)
            (loss * (weight / len(architectures))).backward()
            _gather(boxes, slices, others if i else largest)
            if i < 2:
                tallies[i] = self._tally(answer, batch)
            if i == 0:
                first = float(label_loss.detach())
                if teaches:
                    inside, taught = answer.detach(), {n: f.detach() for n, f in features.items()}
        return first, tallies

    def _shared(
        self, architectures: list[Any], batch: Batch, weight: float, gradients: Gradients, _: Gradients
    ) -> tuple[float, list[Tally]]:
        """Each subnet on images of its own, all in one backward pass."""
        outside = self._teacher_answer(batch)
        total, tallies, ran = torch.zeros((), device=self.device), [Tally(), Tally()], []
        for i, architecture in enumerate(architectures):
            part = _share(batch, i, len(architectures))
            if not len(part.targets):
                continue
            boxes = self.supernet.boxes(architecture)
            slices = self.supernet.slices(boxes)
            taught = None if outside is None else outside[i :: len(architectures)]
            with self._autocast():
                answer = self.supernet(architecture, *part.inputs, train=True, slices=slices)
                loss = self.recipe.distillation.loss(answer, self.task.loss(answer, part), None, taught)
            self._require_sane(float(loss.detach()), architecture, "loss", explosion=math.inf)
            total = total + loss * (len(part.targets) / len(batch.targets))
            ran.append((boxes, slices))
            tallies[0] += self._tally(answer, part)
        (total * weight).backward()
        for boxes, slices in ran:
            _gather(boxes, slices, gradients)
        return float(total.detach()), tallies

    def _tally(self, answer: Tensor, batch: Batch) -> Tally:
        return self.task.tallies(answer.detach().float().cpu(), _to(batch, torch.device("cpu")))[
            self.task.metric.name
        ]

    def _teacher_answer(self, batch: Batch) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), self._autocast():
            answer: Tensor = self.teacher(*batch.inputs)
        return answer

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _features(self, architecture: Any) -> Any:
        if self.features is None:
            return nullcontext({})
        return self.features.of(self.supernet.skeleton(architecture))

    def _added_up(self, gradients: Gradients, others: Gradients, images: int, loss: float) -> float:
        """Makes means over this process's images those over all; returns the loss likewise."""
        if self.group.size == 1:
            return loss
        gradients.scale(images)
        others.scale(images)
        sums = torch.tensor([float(images), loss * images], device=self.device)
        self.group.add_up([*gradients.values(), *others.values(), sums])
        gradients.scale(1 / sums[0])
        others.scale(1 / sums[0])
        return float(sums[1] / sums[0])

    @torch.no_grad()
    def _average(self) -> None:
        if self.averages:
            decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
            bank = [self.supernet.bank[name].detach() for name in self.averages]
            torch._foreach_lerp_(list(self.averages.values()), bank, 1 - decay)

    def _require_sane(
        self, value: float, architecture: Any, what: str, explosion: float | None = None
    ) -> None:
        limit = self.recipe.explosion if explosion is None else explosion
        if explosion is None and len(self.begin) < FIRST_STEPS:
            self.begin.append(value)
        usual = sum(self.begin) / len(self.begin) if self.begin else math.inf
        if math.isfinite(value) and not (limit < math.inf and value > limit * usual):
            return
        law = (
            f"must not exceed {limit:g} times that of the first steps, {usual:.3g}"
            if math.isfinite(value)
            else ("must stay finite")
        )
        good = f"the last good checkpoint is {self.saved}" if self.saved else "there is no checkpoint yet"
        raise RunError(
            f"The {what} {law}, but is {value:.3g} at step {self.step} for {architecture}. Lower "
            f"training.learning_rate (now {self.recipe.learning_rate}); {good}."
        )

    # --- checkpoints ------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.group.rank:
            return
        tensors = dict(self.supernet.state())
        for name, state in self.optimizer.state.items():
            tensors |= {f"{moment}:{name}": state[moment] for moment in MOMENTS}
        tensors |= {f"ema:{name}": tensor for name, tensor in self.averages.items()}
        data = {"step": self.step, "seed": self.seed, "begin": self.begin, "sums": self.sums.data()}
        self.saved = self.checkpoints.save(self.step, tensors, data)

    def _restore(self) -> int:
        """Loads the newest whole checkpoint, if there is one; returns the steps that it has behind it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = self.checkpoints.load()
        if found is None:
            if self.group.rank == 0:
                (self.folder / "history.jsonl").unlink(missing_ok=True)
            return 0
        self.saved, tensors, data = found
        for name, parameter in self.supernet.bank.items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise RunError(
                    f"{self.saved} must fit this supernet, but `{name}` differs: another space wrote it."
                )
            parameter.data.copy_(tensors[name])
            if name in self.averages:
                self.averages[name].copy_(tensors.get(f"ema:{name}", tensors[name]))
            if f"steps:{name}" in tensors:
                state = {moment: tensors[f"{moment}:{name}"] for moment in MOMENTS}
                on_device = {m: t.to(self.device) for m, t in state.items() if m != "steps"}
                self.optimizer.state[name] = on_device | {"steps": state["steps"]}
        self.begin, self.sums = data["begin"], _Sums.of(data["sums"])
        step = int(data["step"])
        if self.group.rank == 0:
            self._trim_history(step // self.steps_per_epoch)
        return step

    def _trim_history(self, epochs: int) -> None:
        path = self.folder / "history.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        path.write_text("".join(lines[:epochs]))


def _gather(boxes: Mapping[str, Box], slices: Mapping[str, Tensor], gradients: Gradients) -> None:
    for name, box in boxes.items():
        if (gradient := slices[name].grad) is not None:
            gradients.add(name, box, gradient)


@contextmanager
def _reproducible(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """PyTorch's random numbers, such as those of dropout, follow from seed and step."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.default_rng((seed, step, rank)).integers(1 << 62)))
        yield


def _share(batch: Batch, i: int, n: int) -> Batch:
    """The i-th of n shares."""
    return batch if n == 1 else Batch(tuple(x[i::n] for x in batch.inputs), batch.targets[i::n])


def _scaled(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) to (B, C, side, side)."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)


def _classes(task: Task) -> int:
    classes = getattr(task, "classes", None)
    if classes is None:
        raise RunError(
            f"`training.mix` must have a task with classes: got {type(task).__name__}. Leave it out."
        )
    return int(classes)


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(tuple(x.to(device) for x in batch.inputs), batch.targets.to(device))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
