"""Training a supernet once, for all its subnets."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.errors import RunError
from nas.supernet import Supernet
from nas.tasks import Batch, Tally, Task
from nas.threads import cpu_threads
from nas.training.checkpoint import load_tensors, save_tensors
from nas.training.heap import frozen_heap
from nas.training.subnets import Sandwich, Subnets

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Recipe:
    """How a supernet is trained.

    Attributes:
        epochs: passes over *train*.
        learning_rate: its peak; warmed up linearly over `warmup` of all steps, then a cosine to 0.
        weight_decay: AdamW's, on matrices alone.
        clip: largest norm of the gradient.
        subnets: which architectures a step trains. The first learns from the labels and teaches the
            others its soft answers (in-place distillation, Yu & Huang, 2019, §3.3).
        checkpoint_seconds: least time between two checkpoints, which are written between epochs.
        device: "auto" takes a GPU where there is one, with bfloat16 autocast.
        threads: CPU threads; 0 leaves the choice to PyTorch.
    """

    epochs: int = 60
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    subnets: Subnets = field(default_factory=Sandwich)
    checkpoint_seconds: float = 10.0
    device: str = "auto"
    threads: int = 0

    def rate(self, progress: float) -> float:
        """Learning rate at `progress` (0 … 1) of the training."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        share = (progress - self.warmup) / (1 - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Epoch:
    """What an epoch of training showed: means over its steps, accuracy in % on augmented *train*."""

    epoch: int
    step: int
    loss: float
    largest_accuracy: float
    smallest_accuracy: float
    learning_rate: float
    seconds: float


def train(
    supernet: Supernet,
    task: Task,
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Supernet:
    """Trains `supernet` in place and returns it. A checkpoint in `folder` is continued from; the result
    equals that of an uninterrupted training.

    Writes `checkpoint.safetensors`, `history.jsonl` and, at the end, `model.safetensors` into `folder`.

    Raises:
        RunError: a damaged checkpoint, or a loss that is not finite (names step and architecture).
    """
    training = _Training(supernet, task, recipe, folder, seed)
    with cpu_threads(recipe.threads), frozen_heap():
        for epoch in training.epochs():
            on_epoch(epoch)
    save_tensors(folder / "model.safetensors", supernet.to("cpu").state(), {"format": "nas.supernet"})
    return supernet


class _Training:
    def __init__(self, supernet: Supernet, task: Task, recipe: Recipe, folder: Path, seed: int) -> None:
        self.task, self.recipe, self.folder, self.seed = task, recipe, folder, seed
        self.device = _device(recipe.device)
        self.supernet = supernet.to(self.device)
        self.optimizer = torch.optim.AdamW(_groups(supernet, recipe), lr=recipe.learning_rate)
        self.steps_per_epoch = sum(1 for _ in task.batches("train", seed=seed))
        self.done = self._restore()  # epochs

    def epochs(self) -> Iterator[Epoch]:
        saved = time.monotonic()
        for epoch in range(self.done, self.recipe.epochs):
            record = self._epoch(epoch)
            with open(self.folder / "history.jsonl", "a") as history:
                history.write(json.dumps(vars(record)) + "\n")
            if time.monotonic() - saved > self.recipe.checkpoint_seconds or epoch + 1 == self.recipe.epochs:
                self._save(epoch + 1)
                saved = time.monotonic()
            yield record

    def _epoch(self, epoch: int) -> Epoch:
        start, losses, tallies = time.monotonic(), [], [Tally(), Tally()]
        step = epoch * self.steps_per_epoch
        for batch in self.task.batches("train", seed=self.seed, epoch=epoch):
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.rate(step / (self.steps_per_epoch * self.recipe.epochs))
            loss, outputs = self._step(step, _to(batch, self.device))
            losses.append(loss)
            tallies = [
                t + self.task.tallies(o, batch)[self.task.metric.name]
                for t, o in zip(tallies, outputs, strict=False)
            ]
            step += 1
        largest, smallest = tallies[0].mean, tallies[-1].mean  # one and the same where a step trains one
        rate = self.optimizer.param_groups[0]["lr"]
        seconds = time.monotonic() - start
        return Epoch(epoch + 1, step, sum(losses) / len(losses), largest, smallest, rate, seconds)

    def _step(self, step: int, batch: Batch) -> tuple[float, list[Tensor]]:
        """One update from all subnets of the step; loss of the first, outputs of the first two."""
        self.optimizer.zero_grad(set_to_none=True)
        architectures = self.recipe.subnets.at(self.supernet.space, self.seed, step)
        outputs: list[Tensor] = []
        first = math.nan
        for i, architecture in enumerate(architectures):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                answer = self.supernet(architecture, *batch.inputs, train=True)
                loss = distillation(answer, outputs[0]) if i else self.task.loss(answer, batch)
            self._require_finite(loss, step, architecture)
            (loss / len(architectures)).backward()
            first = first if i else float(loss.detach())
            if i < 2:
                outputs.append(answer.detach().float())
        torch.nn.utils.clip_grad_norm_(self.supernet.parameters(), self.recipe.clip)
        self.optimizer.step()
        return first, [o.cpu() for o in outputs]

    def _require_finite(self, loss: Tensor, step: int, architecture: Any) -> None:
        if not torch.isfinite(loss):
            raise RunError(
                f"The loss must stay finite, but is {loss.item()} at step {step} for {architecture}. Lower "
                f"training.learning_rate (now {self.recipe.learning_rate}); the last checkpoint in "
                f"{self.folder} is good."
            )

    def _save(self, epochs: int) -> None:
        tensors = dict(self.supernet.state())
        for name, parameter in self.supernet.bank.items():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{moment}:{name}"] = value
        metadata = {"epochs": str(epochs), "seed": str(self.seed)}
        save_tensors(self.folder / "checkpoint.safetensors", tensors, metadata)

    def _restore(self) -> int:
        """Loads the checkpoint, if there is one; returns the epochs that it has behind it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            (self.folder / "history.jsonl").unlink(missing_ok=True)
            return 0
        tensors, metadata = load_tensors(path)
        for name, parameter in self.supernet.bank.items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise RunError(
                    f"{path} must fit this supernet, but `{name}` differs: another space wrote it."
                )
            parameter.data.copy_(tensors[name])
            moments = {m: tensors[f"{m}:{name}"] for m in _MOMENTS if f"{m}:{name}" in tensors}
            if moments:
                on_device = {m: v.to(self.device) for m, v in moments.items() if m != "step"}
                self.optimizer.state[parameter] = on_device | {"step": moments["step"]}
        done = int(metadata["epochs"])
        self._trim_history(done)
        return done

    def _trim_history(self, epochs: int) -> None:
        path = self.folder / "history.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        path.write_text("".join(lines[:epochs]))


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's probabilities, mean over the batch (Hinton et al., 2015)."""
    return F.cross_entropy(student, teacher.softmax(-1))


def _groups(supernet: Supernet, recipe: Recipe) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases and position tables don't."""
    matrices = supernet.matrices()
    decayed = [p for n, p in supernet.bank.items() if n in matrices]
    free = [p for n, p in supernet.bank.items() if n not in matrices]
    groups = [(decayed, recipe.weight_decay), (free, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(tuple(x.to(device) for x in batch.inputs), batch.targets.to(device))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
