"""A small task and supernet, and what one step of a training does to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from nas.space import Space
from nas.supernet import Supernet
from nas.tasks import from_arrays
from nas.training import Gradients, Recipe, Sandwich, SlicedAdamW, train
from search_spaces import hierarchical

RECIPE = Recipe(epochs=4, checkpoint_seconds=0, threads=1, learning_rate=1e-3, subnets=Sandwich())


def made_up_task(n: int = 120, batch_size: int = 32, **kw):
    """Three classes of 8 × 8 pixels; 55 % of the images are *train*."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    images = rng.random((n, 8, 8)) + labels[:, None, None] * np.eye(8)
    return from_arrays(images, labels, batch_size=batch_size, **kw)


def made_up_supernet(task, **kw) -> Supernet:
    kw = {"widths": ((8, 16), (16, 24)), "depths": (1, 2)} | kw
    return copy_of(_supernet(task.classes, task.image_shape, tuple(kw.items())))


@cache
def _supernet(classes: int, image_shape: tuple[int, int, int], kw: tuple) -> Supernet:
    """Made once: that takes longer than most trainings here."""
    space = hierarchical.space(SimpleNamespace(classes=classes, image_shape=image_shape), **dict(kw))
    made = UNTRAINED[space] = Supernet(hierarchical.build, space)
    return made


UNTRAINED: dict[Space, Supernet] = {}


def copy_of(supernet: Supernet) -> Supernet:
    """Another one over the same space, as it was before any training."""
    made = UNTRAINED[supernet.space]
    copy = made.with_state({name: tensor.clone() for name, tensor in made.state().items()})
    for parameter in copy.bank.values():
        parameter.requires_grad_()
    return copy


class Stop(Exception):
    """In the middle of a training."""


def stop_at_step(n: int):
    def on_step(step):
        if step == n:
            raise Stop

    return on_step


@dataclass(frozen=True)
class Tokens:
    """The task, whose loss is a mean over the examples of other classes than one, as one over the tokens that
    are no padding."""

    base: Any
    ignored: int = 1  # of the classes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def weight(self, batch):
        return (batch.targets != self.ignored).sum()

    def loss(self, answer, batch):
        return torch.nn.functional.cross_entropy(answer, batch.targets, ignore_index=self.ignored)


def one_batch(task, n: int = 16):
    """The task with one batch of `n` images for an epoch."""
    return replace(task, splits=dict(task.splits) | {"train": task.splits["train"][:n]})


def step_gradients(supernet, task, recipe, folder, monkeypatch, *, on=train, **kw) -> dict[str, torch.Tensor]:
    """Gradients of the first step, before clipping, each as large as its parameter in the bank."""
    found: dict[str, torch.Tensor] = {}

    def caught(_, gradients: Gradients, rate: float) -> None:
        for name in gradients:
            found[name] = torch.zeros_like(supernet.bank[name])
            found[name][gradients.box(name)] = gradients.value(name)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(SlicedAdamW, "step", caught)
        try:
            on(supernet, task, replace(recipe, clip=float("inf")), folder, **kw)
        except Stop:
            return found
    raise AssertionError("No step was made.")


def bank_gradients(supernet, loss) -> dict[str, torch.Tensor]:
    """Gradients of a loss by PyTorch alone, with respect to the bank."""
    names = list(supernet.bank)
    gradients = torch.autograd.grad(loss, [supernet.bank[n] for n in names], allow_unused=True)
    return {n: g for n, g in zip(names, gradients, strict=True) if g is not None}


def assert_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert any(g.abs().max() > 1e-4 for g in expected.values())
