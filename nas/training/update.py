"""One update of a bank of weights: architectures, losses, gradients, the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.architecture import architecture_id
from nas.errors import RunError, errors_of_users
from nas.supernet import Box, Supernet
from nas.tasks import Batch, Tally, Task
from nas.training.batch_norm import synchronised
from nas.training.distillation import Features, axis_of_classes, feature_loss
from nas.training.feed import Feed, moved, share
from nas.training.gradients import Gradients
from nas.training.guard import Guard
from nas.training.heap import hidden
from nas.training.optimizer import MOMENTS, SlicedAdamW
from nas.training.recipe import Recipe
from nas.training.streams import MODULES, torch_seed
from nas.training.subnets import architectures_of


class Update:
    """Trains the subnets of a step: `update(batches, step)`.

    Args:
        feed: mixes, scales and shares batches; also says how many processes there are, and on which device.
        guard: looks at losses and gradients before weights move.
        steps: of the whole training.
    """

    def __init__(
        self, supernet: Supernet, task: Task, recipe: Recipe, feed: Feed, guard: Guard, steps: int
    ) -> None:
        self.task, self.recipe, self.feed, self.guard, self.steps = task, recipe, feed, guard, steps
        self.seed, self.group, self.device = feed.seed, feed.group, feed.device
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
        self._require_parts()
        self._next: tuple[int, list[Any]] | None = None  # a step, and its architectures

    def __call__(self, batches: list[Batch], step: int) -> tuple[float, list[Tally]]:
        """One update from all subnets of a step; loss of the first, tallies of the first two.

        Raises:
            RunError: a rule, module or task that does not give what it must, or numbers that the guard does
                not let pass.
        """
        self.step = step
        self.numbers = batches[0].targets.is_floating_point()  # before mixing makes shares of classes
        with _reproducible(self.seed, step, self.group.rank, self.device):
            return self._update([self.feed.prepared(b, step, i) for i, b in enumerate(batches)])

    def result(self) -> dict[str, Tensor]:
        """The weights that are kept."""
        return self.averages or self.supernet.state()

    # --- state ------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """All that the next update depends on, for `restore`."""
        tensors = dict(self.supernet.state())
        for name, state in self.optimizer.state.items():
            tensors |= {f"{moment}:{name}": state[moment] for moment in MOMENTS}
        return tensors | {f"ema:{name}": tensor for name, tensor in self.averages.items()}

    def restore(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Goes back to what `tensors` gave. Raises RunError where `path` has those of another supernet."""
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

    # --- a step -----------------------------------------------------------------------------------

    def _update(self, batches: list[Batch]) -> tuple[float, list[Tally]]:
        recipe, architectures = self.recipe, self._architectures(self.step)
        gradients, others = Gradients(), Gradients()
        tallies, loss = [Tally(), Tally()], 0.0
        images = sum(len(batch.targets) for batch in batches)  # of all processes
        for batch in batches:
            run = self._shared if recipe.subnets.shares_batch else self._each
            found = run(architectures, batch, images, gradients, others if recipe.project else gradients)
            loss += found[0]
            tallies = [a + b for a, b in zip(tallies, found[1], strict=True)]
        if self.step + 1 < self.steps:  # now, for a GPU is still at the backward pass and nothing has waited
            self._next = self.step + 1, self._architectures(self.step + 1)
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

    def _architectures(self, step: int) -> list[Any]:
        """Those of a step, whose skeletons are in the cache then."""
        if self._next and self._next[0] == step:
            return self._next[1]
        drawn = architectures_of(self.recipe.subnets, self.trained, self.seed, step, step / self.steps)
        with hidden():
            return [a for a in drawn if self.supernet.holds(a)] or drawn

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
        with errors_of_users(lambda: f"`tallies` of {task} must give the metrics of a batch, but"):
            tallies = self.task.tallies(answer.detach().float().cpu(), moved(batch, torch.device("cpu")))
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

        def law() -> str:
            shapes = ", ".join(str(tuple(x.shape)) for x in batch.inputs)
            return (
                f"The module of architecture {architecture_id(architecture)} and the loss must work for "
                f"inputs {shapes}, but at step {self.step}"
            )

        with errors_of_users(law), synchronised(self.group, counts=count > 0), self._autocast():
            yield

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


def _gather(boxes: Mapping[str, Box], slices: Mapping[str, Tensor], gradients: Gradients) -> None:
    for name, box in boxes.items():
        if (gradient := slices[name].grad) is not None:
            gradients.add(name, box, gradient)


@contextmanager
def _reproducible(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """PyTorch's random numbers, such as those of dropout, follow from seed and step."""
    devices, number = [device] if device.type == "cuda" else [], torch_seed(MODULES, seed, step, rank)
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(number)  # of what is used alone: to ask all devices takes a while
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield
