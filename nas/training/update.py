"""One update of a bank of weights: architectures, losses, gradients, the optimizer's step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.architecture import architecture_id
from nas.errors import RunError, SpaceError, errors_of_users, first_line
from nas.supernet import Box, Supernet
from nas.tasks import Batch, Tally, Task, axis_of_classes
from nas.training.batch_norm import synchronised
from nas.training.distillation import Features, feature_loss
from nas.training.drawing import Drawing
from nas.training.feed import Feed, moved, share
from nas.training.gradients import Gradients
from nas.training.guard import Diverged, Guard
from nas.training.optimizer import MOMENTS, SlicedAdamW
from nas.training.recipe import Recipe
from nas.training.streams import MODULES, reproducible

STEPS_LOOKED_AT = 16  # before the first, whether their subnets take all sides


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
        self.supernet = supernet.to(self.device)
        matrices = supernet.matrices()
        groups = recipe.groups({name: name in matrices for name in supernet.bank})
        self.optimizer = SlicedAdamW(supernet.bank, groups)
        self.averages = {n: t.clone() for n, t in supernet.state().items()} if recipe.ema else {}
        teacher = recipe.distillation.teacher
        if isinstance(teacher, (str, Path)):
            from nas.export.subnet import load_subnet  # brings ONNX with it

            teacher = load_subnet(teacher, supernet.build.build, supernet.space.classes)
        self.teacher = None  # a copy: the caller's own stays as it is
        if teacher is not None:
            self.teacher = copy.deepcopy(teacher).to(self.device).eval().requires_grad_(False)
        self.features = Features(recipe.distillation.parts) if recipe.distillation.features else None
        self._require_parts()
        self.drawing = Drawing(
            self.supernet, recipe.subnets, recipe.trained(supernet.space), self.seed, steps, self.device
        )
        self._sides_fit = False
        self.unsound: list[bool] = []  # whether gradients of a step's i-th subnet are not finite; once asked

    def __call__(self, batches: list[Batch], step: int) -> tuple[float, list[Tally]]:
        """One update from all subnets of a step; loss of the first, tallies of the first two.

        Raises:
            RunError: a rule, module or task that does not give what it must, or numbers that the guard does
                not let pass.
        """
        if not self._sides_fit:
            self._require_sides(batches[0])
            self._sides_fit = True
        self.step = step
        self.targets = batches[0].targets  # as the task gives them: mixing makes shares of classes
        with reproducible(MODULES, self.seed, step, self.group.rank, self.device):
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

    def sane_with(
        self, tensors: Mapping[str, Tensor], path: Path, architecture: Any, batches: list[Batch], step: int
    ) -> bool:
        """Goes back to what `tensors` gave. Whether `architecture` has a loss and gradients then on these
        batches that the guard lets pass."""
        self.restore(tensors, path)
        with reproducible(MODULES, self.seed, step, self.group.rank, self.device):
            for i, given in enumerate(batches):
                self.targets = given.targets
                batch, _ = self.feed.own(self.feed.prepared(given, step, i))
                slices = self.supernet.slices(self.supernet.boxes(architecture))
                with self.supernet.in_place(architecture, train=True, slices=slices) as module:
                    with self._autocast():
                        answer = self._answer(module, architecture, batch)
                        loss = self._label_loss(answer, batch, self._weight(batch))
                    loss.backward()
                norms = [s.grad.norm() for s in slices.values() if s.grad is not None]
                try:
                    self.guard.require_sane(float(loss.detach()), step, architecture)
                    self.guard.require_finite("norm of the gradient", float(sum(norms)), step, architecture)
                except Diverged:
                    return False
        return True

    # --- a step -----------------------------------------------------------------------------------

    def _update(self, batches: list[Batch]) -> tuple[float, list[Tally]]:
        recipe, architectures = self.recipe, self.drawing.at(self.step)
        gradients, others = Gradients(), Gradients()
        self.gathered: dict[int, _Gathered] = {}
        tallies, loss = [Tally(), Tally()], 0.0
        total = _Size.of(batches, self._weight)  # of all processes
        run = self._shared if recipe.subnets.shares_batch else self._each
        for batch in batches:
            found = run(architectures, batch, total, gradients, others if recipe.project else gradients)
            loss += found[0]
            tallies = [a + b for a, b in zip(tallies, found[1], strict=True)]
        loss, tallies = self._added_up(gradients, others, loss, tallies)
        self.guard.require_sane(loss, self.step, architectures[0])
        if recipe.project:
            gradients.without_conflict(others)
            gradients.update(others)
        norm = gradients.norm()
        if not math.isfinite(float(norm)):
            culprit = self._culprit(architectures, batches)
            self.guard.require_finite("norm of the gradient", float(norm), self.step, culprit)
        self.guard.passed(loss)
        gradients.scale((recipe.clip / (norm + 1e-6)).clamp(max=1))
        self.optimizer.step(gradients, recipe.rate(self.step / self.steps))
        self._average()
        return loss, tallies

    def _culprit(self, architectures: list[Any], batches: list[Batch]) -> Any:
        """The first whose gradients are not finite: takes the step once more, and looks at each. (To look
        always would be to wait for the GPU at every subnet.)"""
        self.gathered, self.unsound = {}, [False] * len(architectures)
        run = self._shared if self.recipe.subnets.shares_batch else self._each
        with reproducible(MODULES, self.seed, self.step, self.group.rank, self.device):
            for batch in batches:
                run(architectures, batch, _Size.of([batch], self._weight), Gradients(), Gradients())
        unsound = self.group.either(self.unsound)
        return next((a for a, is_so in zip(architectures, unsound, strict=True) if is_so), architectures[0])

    def _weight(self, batch: Batch) -> float:
        """How much the mean loss of these examples counts."""
        of = getattr(self.task, "weight", None)
        if of is None:
            return float(len(batch.targets))
        task = type(self.task).__name__
        with errors_of_users(
            lambda: f"`weight` of {task} must give that of a batch, but at step {self.step}"
        ):
            weight = float(of(batch))
        if not 0 <= weight < math.inf:
            raise RunError(
                f"`weight` of {task} must be what its mean loss is over, such as a number of tokens, 0 or "
                f"more: got {weight} at step {self.step}."
            )
        return weight

    def _each(
        self, architectures: list[Any], batch: Batch, total: _Size, largest: Gradients, others: Gradients
    ) -> tuple[float, list[Tally]]:
        """All subnets on this process's share of the batch, one after the other; its part of the mean loss
        over the `total`."""
        batch, count = self.feed.own(batch)
        size = _Size(count, self._weight(batch) if count else 0.0).over(total)
        distillation, teaches = self.recipe.distillation, self.recipe.subnets.teaches
        outside = self._teacher_answer(batch)
        tallies, first, inside = [Tally(), Tally()], math.nan, None
        taught: dict[str, Tensor] = {}
        for i, architecture in enumerate(architectures):
            boxes = self.supernet.boxes(architecture)
            slices = self.supernet.slices(boxes)
            with self.supernet.in_place(architecture, train=True, slices=slices) as module:
                with self._running(architecture, batch, count), self._features(architecture) as features:
                    answer = self._answer(module, architecture, batch)
                    label_loss = self._label_loss(answer, batch, size.weight)
                    classes = axis_of_classes(tuple(answer.shape), self.targets)
                    counted = size.counted(label_loss)
                    loss = distillation.loss(answer, counted, inside, outside, classes)
                    if taught:
                        loss = loss + distillation.features * feature_loss(features, taught).to(loss.device)
                self._require_sane(label_loss, loss, outside, architecture)
                if i < 2 and count:
                    tallies[i] = self._tally(answer, batch)
                if i == 0:
                    first = float(label_loss.detach())
                    if teaches:
                        inside, taught = answer.detach(), {n: f.detach() for n, f in features.items()}
                self._backward(loss * (size.images / len(architectures)), counts=count > 0)
            self._gather(i, boxes, slices, others if i else largest)
        return size.weight * first, tallies

    def _answer(self, module: nn.Module, architecture: Any, batch: Batch) -> Tensor:
        answer = module(*batch.inputs)
        if not isinstance(answer, Tensor):
            raise RunError(
                f"A module must answer with one tensor to be trained: got a {type(answer).__name__} of "
                f"architecture {architecture_id(architecture)}. Build a module around it that gives the one "
                f"that the task's loss is about."
            )
        return answer

    def _backward(self, loss: Tensor, counts: bool) -> None:
        """Gradients of `loss`, for which parts of modules may run again, norms among them (`counts` as of
        `synchronised`). While a GPU is at them, the next step's architectures get their skeletons: from here
        on nothing waits for it before the norm of all gradients, or the next subnet's loss."""
        task = type(self.task).__name__
        law = lambda: f"`loss` of {task} must have gradients, but at step {self.step}"  # noqa: E731
        with errors_of_users(law), synchronised(self.group, counts):
            loss.backward()
        self.drawing.prepare(self.step + 1)

    def _gather(
        self, i: int, boxes: Mapping[str, Box], slices: Mapping[str, Tensor], gradients: Gradients
    ) -> None:
        """Takes over what the step's i-th subnet has of gradients."""
        gathered = self.gathered.setdefault(i, _Gathered(boxes, gradients, set()))
        for name, box in boxes.items():
            if (gradient := slices[name].grad) is not None:
                if self.unsound:
                    self.unsound[i] |= not bool(gradient.isfinite().all())
                gradients.add(name, box, gradient)
                gathered.names.add(name)

    def _require_sane(
        self, label_loss: Tensor, loss: Tensor, outside: Tensor | None, architecture: Any
    ) -> None:
        """Raises RunError for a loss that is not finite or explodes."""
        whole = float(loss.detach())
        if not math.isfinite(whole) and outside is not None and not bool(outside.isfinite().all()):
            raise RunError(
                f"The teacher's answers must be finite, but are not at step {self.step}. Give another one as "
                f"distillation.teacher, or none."
            )
        self.guard.require_sane(float(label_loss.detach()), self.step, architecture)
        self.guard.require_finite("loss", whole, self.step, architecture)

    def _label_loss(self, answer: Tensor, batch: Batch, weight: float) -> Tensor:
        """The task's loss; 0 of what counts for nothing, which may have none. Once, that of knowing nothing
        too, by which a loss is known to be a large one."""
        if not weight:
            return 0 * answer.float().sum()
        loss = self.task.loss(answer, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"a tensor of {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise RunError(
                f"`loss` of {type(self.task).__name__} must give a tensor of one number, the mean over the "
                f"batch: got {got}."
            )
        if self.guard.nothing is None:
            self.guard.nothing = self._loss_of_zeros(answer, batch)
        return loss.reshape(())

    def _loss_of_zeros(self, answer: Tensor, batch: Batch) -> float:
        """0 where nobody asks for it, or the loss has none. It draws no numbers that others draw."""
        devices = [self.device] if self.device.type == "cuda" else []
        if self.recipe.explosion < math.inf:
            with suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices):
                found = float(self.task.loss(torch.zeros_like(answer), batch))
                return found if math.isfinite(found) else 0.0
        return 0.0

    def _shared(
        self, architectures: list[Any], batch: Batch, whole: _Size, gradients: Gradients, _: Gradients
    ) -> tuple[float, list[Tally]]:
        """Each subnet on images of its own, of which this process has a share, all in one backward pass; its
        part of the mean loss over the `whole`. None gets a single image, where batch norms have no
        variance."""
        architectures = architectures[: max(1, len(batch.targets) // 2)]
        total, tallies, ran = torch.zeros((), device=self.device), [Tally(), Tally()], []
        with ExitStack() as in_place:
            for i, architecture in enumerate(architectures):
                part = share(batch, i, len(architectures))
                part, count = self.feed.own(part)
                size = _Size(count, self._weight(part) if count else 0.0).over(whole)
                boxes = self.supernet.boxes(architecture)
                slices = self.supernet.slices(boxes)
                module = in_place.enter_context(
                    self.supernet.in_place(architecture, train=True, slices=slices)
                )
                outside = self._teacher_answer(part)
                with self._running(architecture, part, count):
                    answer = self._answer(module, architecture, part)
                    label_loss = self._label_loss(answer, part, size.weight)
                    classes = axis_of_classes(tuple(answer.shape), self.targets)
                    counted = size.counted(label_loss)
                    loss = self.recipe.distillation.loss(answer, counted, None, outside, classes)
                self._require_sane(label_loss, loss, outside, architecture)
                total = total + loss * size.images
                ran.append((boxes, slices))
                if count:
                    tallies[0] += self._tally(answer, part)
            found = float(total.detach())
            self._backward(total, counts=True)
        for i, (boxes, slices) in enumerate(ran):
            self._gather(i, boxes, slices, gradients)
        return found, tallies

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
        shapes = ", ".join(str(tuple(x.shape)) for x in batch.inputs)
        with errors_of_users(lambda: f"The teacher must answer inputs {shapes}, but at step {self.step}"):
            with torch.no_grad(), self._autocast():
                answer: Tensor = self.teacher(*batch.inputs)
        if not isinstance(answer, Tensor):
            raise RunError(
                f"The teacher must answer with one tensor: got a {type(answer).__name__}. Give a module "
                f"around it that does."
            )
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
        self._align()
        gradients.sort()
        others.sort()
        parts = [loss, *(x for t in tallies for x in (t.total, t.squares, t.n))]
        sums = torch.tensor(parts, device=self.device)
        self.group.add_up([*gradients.values(), *others.values(), sums])
        loss, *both = sums.tolist()
        return loss, [Tally(both[i], both[i + 1], round(both[i + 2])) for i in (0, 3)]

    def _align(self) -> None:
        """Zeros for what other processes have trained and this one has not: modules may leave out a layer at
        random (Fan et al., 2020)."""
        places = [(g, name, name in g.names) for g in self.gathered.values() for name in g.boxes]
        somewhere = self.group.either([here for _, _, here in places])
        for (gathered, name, here), trained in zip(places, somewhere, strict=True):
            if trained and not here:
                box = gathered.boxes[name]
                zeros = self.supernet.bank[name].new_zeros([s.stop - s.start for s in box])
                gathered.gradients.add(name, box, zeros)

    @torch.no_grad()
    def _average(self) -> None:
        if self.averages:
            decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
            bank = [self.supernet.bank[name].detach() for name in self.averages]
            torch._foreach_lerp_(list(self.averages.values()), bank, 1 - decay)

    @torch.no_grad()
    def _require_sides(self, batch: Batch) -> None:
        """Raises RunError where an architecture does not take one of the sides, of the cover or of some steps
        to come: those may draw both together hours from now."""
        own = moved(batch, torch.device("meta")).inputs
        scaled = {
            s: moved(self.feed.scaled(batch, s), torch.device("meta")).inputs for s in self.recipe.resolutions
        }
        looked = np.linspace(0, self.steps, STEPS_LOOKED_AT, endpoint=False).astype(int).tolist()
        drawn = (a for step in looked for a in self.drawing.at(step)) if scaled else ()
        every = dict.fromkeys([*self.supernet.cover, *drawn])
        for (side, inputs), architecture in product(scaled.items(), every):
            run = self.supernet.skeleton(architecture)
            try:
                run(*inputs)
            except Exception as error:
                if not isinstance(error, SpaceError):
                    try:
                        run(*own)
                    except Exception:  # modules that do not run without numbers
                        continue
                raise RunError(
                    f"`training.resolutions` must hold sides that all architectures take: got {side}, which "
                    f"{architecture_id(architecture)} does not: {first_line(error)}"
                ) from error

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


@dataclass(frozen=True)
class _Size:
    """How much a part of a step counts: by images, over which distillation is a mean, and by the `weight` of
    its task's loss; both as they are, or as shares of the whole."""

    images: float
    weight: float

    @classmethod
    def of(cls, batches: list[Batch], weight: Callable[[Batch], float]) -> _Size:
        return cls(sum(len(batch.targets) for batch in batches), sum(map(weight, batches)))

    def over(self, whole: _Size) -> _Size:
        return _Size(self.images / whole.images, self.weight / whole.weight if whole.weight else 0.0)

    def counted(self, loss: Tensor) -> Tensor:
        """The task's loss such that it counts by its weight where all is counted by images."""
        return loss if self.weight == self.images else loss * (self.weight / self.images)


@dataclass(frozen=True)
class _Gathered:
    """Of a subnet of a step: where its slices lie, and the names of those whose gradients went where."""

    boxes: Mapping[str, Box]
    gradients: Gradients
    names: set[str]
