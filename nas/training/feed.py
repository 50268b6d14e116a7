"""What a step is fed with: batches mixed, scaled and shared among processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from types import NoneType

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.errors import RunError, errors_of_users
from nas.tasks import Batch, RandomAffine, RandomCropFlip, Task, classified
from nas.training.group import Group
from nas.training.prefetch import CAN_FORK, OtherProcess, Prefetched
from nas.training.recipe import Recipe
from nas.training.streams import MIXING, SIDES, stream, torch_seed

OURS = (NoneType, RandomAffine, RandomCropFlip)
"""Augmentations that draw from the generator that they are given, and from no other."""


class Feed:
    """The batches of *train*, the same for the same (seed, epoch, step).

    Attributes:
        waited: seconds that training has waited for batches since this was last set to 0.
    """

    def __init__(self, task: Task, recipe: Recipe, seed: int, group: Group, device: torch.device) -> None:
        self.task, self.recipe, self.seed = task, recipe, seed
        self.group, self.device = group, device
        self.waited = 0.0
        self._process: OtherProcess[Batch] | None = None

    def groups(self, epoch: int, done: int) -> Generator[list[Batch]]:
        """What is left of an epoch after `done` updates, as many batches as an update takes at a time."""
        count = self.recipe.accumulate
        batches = self._made_ready(epoch, done * count)
        try:
            while group := self._awaited(lambda: list(islice(batches, count))):
                yield group
        finally:
            if isinstance(batches, Prefetched):
                batches.close()

    def close(self) -> None:
        """Ends the process that makes batches, if there is one."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _made_ready(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from one on, made while steps run: by a thread, or by a process where
        somebody's augmentation may draw from PyTorch's own numbers, which steps draw from."""
        if type(getattr(self.task, "augment", None)) in OURS:  # a subclass of these is somebody's own
            return Prefetched(self._source(epoch, first))
        if not CAN_FORK:
            return self._source(epoch, first)
        if self._process is None or self._process.epoch != epoch or first:
            self.close()
            self._process = OtherProcess(self._source, epoch, first)
        return self._process.items()

    def _source(self, epoch: int, first: int) -> Iterator[Batch]:
        with self._errors_of_task():
            yield from self.task.batches("train", seed=self.seed, epoch=epoch, first=first)

    def prepared(self, batch: Batch, step: int, place: int) -> Batch:
        """The batch at a place of a step's group: mixed, scaled, on the device."""
        recipe = self.recipe
        if recipe.mix:
            _require_classes(batch)
            generator = torch.Generator().manual_seed(torch_seed(MIXING, self.seed, step, place))
            batch = recipe.mix(batch, _classes(self.task), generator)
        if sides := recipe.resolutions:
            batch = self.scaled(batch, sides[stream(SIDES, self.seed, step).integers(len(sides))])
        return moved(batch, self.device)

    def scaled(self, batch: Batch, side: int) -> Batch:
        """The batch with images of (side, side)."""
        _require_images(batch, "training.resolutions")
        return Batch((_scaled(batch.inputs[0], side), *batch.inputs[1:]), batch.targets)

    def own(self, batch: Batch) -> tuple[Batch, int]:
        """This process's share of a batch, and how many images it holds. With none it has one after all,
        which counts for nothing: all processes must come to the same gradients."""
        part = share(batch, self.group.rank, self.group.size)
        count = len(part.targets)
        return (part, count) if count else (share(batch, 0, len(batch.targets)), 0)

    def _errors_of_task(self) -> AbstractContextManager[None]:
        return errors_of_users(
            lambda: f"`batches` of {type(self.task).__name__} must give those of train, but"
        )

    def _awaited(self, take: Callable[[], list[Batch]]) -> list[Batch]:
        start, task = time.perf_counter(), type(self.task).__name__
        with self._errors_of_task():
            taken = take()
        if wrong := [batch for batch in taken if not isinstance(batch, Batch)]:
            raise RunError(
                f"`batches` of {task} must give `nas.tasks.Batch(inputs, targets)`: got a "
                f"{type(wrong[0]).__name__}."
            )
        for batch in taken:
            _require_tensors(batch, task)
        self.waited += time.perf_counter() - start
        return taken


def share(batch: Batch, i: int, n: int) -> Batch:
    """The i-th of n shares."""
    return batch if n == 1 else Batch(tuple(x[i::n] for x in batch.inputs), batch.targets[i::n])


def moved(batch: Batch, device: torch.device) -> Batch:
    return Batch(tuple(x.to(device) for x in batch.inputs), batch.targets.to(device))


def _scaled(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) to (B, C, side, side)."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)


def _require_tensors(batch: Batch, task: str) -> None:
    """Raises RunError for a batch that no module can be given."""
    inputs = batch.inputs if isinstance(batch.inputs, tuple) else None
    wrong = [x for x in (*(inputs or ()), batch.targets) if not isinstance(x, Tensor)]
    if not inputs or wrong:
        got = f"a {type(wrong[0]).__name__}" if wrong else f"inputs in a {type(batch.inputs).__name__}"
        raise RunError(f"`batches` of {task} must give `Batch((tensor, …), tensor)`: got {got}.")
    if not batch.targets.ndim or not len(batch.targets):
        raise RunError(
            f"`batches` of {task} must give one example or more at a time: got targets of "
            f"{tuple(batch.targets.shape)}."
        )


def _require_images(batch: Batch, setting: str) -> None:
    if batch.inputs[0].ndim != 4:
        raise RunError(
            f"`{setting}` must have a task of images (B, C, H, W): got inputs of "
            f"{tuple(batch.inputs[0].shape)}. Leave it out."
        )


def _require_classes(batch: Batch) -> None:
    if not classified(batch):
        raise RunError(
            f"`training.mix` must have one class per example, (B,): got targets of {batch.targets.dtype} "
            f"{tuple(batch.targets.shape)}. Leave it out."
        )


def _classes(task: Task) -> int:
    classes = getattr(task, "classes", None)
    if classes is None:
        raise RunError(
            f"`training.mix` must have a task with classes: got {type(task).__name__}. Leave it out."
        )
    return int(classes)
