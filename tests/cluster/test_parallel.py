"""Training on several processes is training on one, also where one of them dies."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from training.small import (
    RECIPE,
    Stop,
    Tokens,
    assert_gradients,
    made_up_supernet,
    made_up_task,
    one_batch,
    step_gradients,
)

from nas.cluster import train_parallel
from nas.cluster.local import connect
from nas.cluster.parallel import _problem, _require_room
from nas.errors import RunError
from nas.space import Space, oneof
from nas.supernet import Supernet
from nas.tasks import Mix
from nas.training import Sandwich, SinglePath, Subnets, train
from nas.training.batch_norm import synchronised

RECIPE = replace(RECIPE, epochs=2)
HERE = [sys.modules[__name__]]  # workers cannot import tests


@dataclass(frozen=True)
class Widths:
    width: int


@pytest.fixture(scope="module")
def task():
    return made_up_task()


class Recorder:
    """One process of two, run on its own: what it would send is kept."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.sent: list[torch.Tensor] = []

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        self.sent = [t.clone() for t in tensors]
        raise Stop

    def either(self, flags: list[bool]) -> list[bool]:
        return flags


class Replay:
    """The same process, which now hears what both sent."""

    size = 2

    def __init__(self, rank: int, sent: list[list[torch.Tensor]]) -> None:
        self.rank, self.sent = rank, sent

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        for tensor, parts in zip(tensors, zip(*self.sent, strict=True), strict=True):
            tensor.copy_(sum(parts))

    def either(self, flags: list[bool]) -> list[bool]:
        return flags


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, project=True),
        replace(RECIPE, mix=Mix(mixup=0.3), accumulate=2),
        replace(RECIPE, subnets=SinglePath()),
    ],
    ids=["sandwich", "projected", "mixed, accumulated", "tokens"],
)
def test_two_at_half_the_batch_give_the_gradients_of_one(recipe, task, tmp_path, monkeypatch, request):
    single = one_batch(task, 15)  # shares of 8 and 7 images
    if recipe.accumulate > 1:
        single = replace(single, batch_size=8)
    if "tokens" in request.node.callspec.id:
        single = Tokens(single)
    whole = step_gradients(made_up_supernet(task), single, recipe, tmp_path / "whole", monkeypatch)
    processes = Recorder(0), Recorder(1)
    for process in processes:
        with pytest.raises(Stop):
            train(made_up_supernet(task), single, recipe, tmp_path / str(process.rank), group=process)
    for rank in (0, 1):
        group = Replay(rank, [process.sent for process in processes])
        folder = tmp_path / f"replayed {rank}"
        found = step_gradients(made_up_supernet(task), single, recipe, folder, monkeypatch, group=group)
        assert_gradients(found, whole)


class OneOfTwo(nn.Module):
    """Of two layers alike one, at random, in each process another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, width), nn.Linear(64, width)
        self.head, self.spare = nn.Linear(width, 3), nn.Linear(width, 3)  # of which one is never used

    def forward(self, x):
        layer = self.first if torch.rand(()) < 0.5 else self.second
        return self.head(layer(x.flatten(1)).relu())


class Fellow:
    """A process of two, which says what it has, then what it sends, and hears what both have and send."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.flags: list[list[bool]] = []
        self.sent: list[list[torch.Tensor]] = []

    def either(self, flags: list[bool]) -> list[bool]:
        if not self.flags:
            self.flags = [flags]
            raise Stop
        return [any(found) for found in zip(*self.flags, strict=True)]

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        if not self.sent:
            self.sent = [[t.clone() for t in tensors]]
            raise Stop
        for tensor, parts in zip(tensors, zip(*self.sent, strict=True), strict=True):
            tensor.copy_(sum(parts))


def test_processes_may_leave_out_different_layers(task, tmp_path, monkeypatch):
    """Gradients of one must not be added to those of another parameter, as large as it."""
    supernet = Supernet(lambda a: OneOfTwo(a.width), Space(Widths(oneof(4, 8))))
    recipe, single = replace(RECIPE, subnets=Sandwich()), one_batch(task)
    fellows = Fellow(0), Fellow(1)

    def step(fellow: Fellow, name: str) -> dict[str, torch.Tensor]:
        folder = tmp_path / f"{name} {fellow.rank}"
        return step_gradients(supernet, single, recipe, folder, monkeypatch, group=fellow, seed=2)

    for fellow in fellows:
        assert not step(fellow, "flags")
    assert fellows[0].flags != fellows[1].flags
    for fellow in fellows:
        fellow.flags = [f.flags[0] for f in fellows]
        assert not step(fellow, "sent")
    for fellow in fellows:
        fellow.sent = [f.sent[0] for f in fellows]
    found, other = (step(fellow, "heard") for fellow in fellows)
    assert list(found) == list(other) == sorted(set(supernet.bank) - {"spare.weight", "spare.bias"})
    for name, gradient in found.items():
        assert torch.equal(gradient, other[name])


@pytest.fixture(scope="module")
def ray():
    """Once for all: it takes seconds to start."""
    stop = connect(3, None)
    yield
    stop()


@dataclass(frozen=True)
class Deadly(Subnets):
    """A sandwich of which, once, one of two processes does not come back."""

    marker: str
    step: int = 4
    teaches = True

    def at(self, space, seed, step, progress):
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 0:
            with open(f"{self.marker}-steps", "a") as steps:
                steps.write(f"{step}\n")
        if step == self.step and torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
                os._exit(1)
            except FileExistsError:
                pass
        return Sandwich().at(space, seed, step, progress)


def test_a_process_that_dies_changes_nothing(ray, task, tmp_path):
    """On Ray: the result is that of one process that was never disturbed."""
    undisturbed = []
    one = train(made_up_supernet(task), task, RECIPE, tmp_path / "whole", on_epoch=undisturbed.append)
    whole = one.state()
    recipe = replace(RECIPE, workers=2, subnets=Deadly(str(tmp_path / "died")))
    epochs = []
    supernet = made_up_supernet(task)
    found = train_parallel(
        supernet, task, recipe, tmp_path / "two", on_epoch=epochs.append, by_value=HERE
    ).state()
    assert (tmp_path / "died").exists()
    assert [e.epoch for e in epochs] == [1, 2]
    for told, alone in zip(epochs, undisturbed, strict=True):  # of all images, not of one process's
        assert told.first_metric == pytest.approx(alone.first_metric)
        assert told.second_metric == pytest.approx(alone.second_metric)
    steps = [int(line) for line in (tmp_path / "died-steps").read_text().split()]
    assert steps.count(0) == 1  # it went on from a checkpoint
    assert steps.count(4) == 2
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("times", [2, 5])
def test_a_process_that_dies_as_it_starts(times, ray, task, tmp_path, monkeypatch):
    """Of which Ray says at once that the training is over."""
    from ray.train import ControllerError
    from ray.train.torch import TorchTrainer

    left = iter([ControllerError(RuntimeError("The actor died"))] * times)

    def fit(self):
        if error := next(left, None):
            raise error
        train(made_up_supernet(task), task, RECIPE, tmp_path)

    monkeypatch.setattr(TorchTrainer, "fit", fit)
    recipe, supernet = replace(RECIPE, workers=2), made_up_supernet(task)
    if times > 3:
        with pytest.raises(RunError, match=r"must not lose them more than 3 times, but did: .*actor died"):
            train_parallel(supernet, task, recipe, tmp_path)
        return
    train_parallel(supernet, task, recipe, tmp_path)
    assert not list(tmp_path.glob("seen*"))


class Normed(nn.Module):
    """Batch norms over images, in a part that runs again in the backward pass, and over rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.norm = nn.Conv2d(1, width, 3, bias=False), nn.BatchNorm2d(width)
        self.rows, self.down = nn.BatchNorm1d(width, affine=False), nn.Linear(width, 3)

    def first(self, x):
        return self.norm(self.up(x)).relu().mean((2, 3))

    def forward(self, x):
        return self.down(self.rows(checkpoint(self.first, x, use_reentrant=False)))


def build_normed(architecture: Widths) -> Normed:
    return Normed(architecture.width)


def test_batch_norms_see_the_batches_of_all(ray, task, tmp_path):
    """The last batch of an epoch has 5 images, 3 and 2 for each."""
    interrupt = signal.getsignal(signal.SIGINT)
    odd = replace(task, splits=dict(task.splits) | {"train": task.splits["train"][:37]})
    supernet = Supernet(build_normed, Space(Widths(oneof(8, 16))))
    start = {name: tensor.clone() for name, tensor in supernet.state().items()}
    recipe = replace(RECIPE, explosion=1e9)
    whole = train(supernet, odd, recipe, tmp_path / "whole").state()
    other = supernet.with_state(start)
    two = train_parallel(other, odd, replace(recipe, workers=2), tmp_path / "two", by_value=HERE).state()
    for name, tensor in whole.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    assert signal.getsignal(signal.SIGINT) is interrupt  # Ray's own would stay


class Twin:
    """One of two processes that have the same inputs."""

    rank, size = 0, 2

    def total(self, tensor):
        return tensor * 2


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_batch_norms_do_not_cancel(mean):
    torch.manual_seed(0)
    x = (torch.randn(64, 5, 4, 4) + mean).requires_grad_()
    weight, bias = torch.rand(5), torch.rand(5)
    both = torch.cat([x, x]).double()
    expected = F.batch_norm(both, None, None, weight.double(), bias.double(), training=True)[:64]
    with synchronised(Twin(), counts=True):
        found = F.batch_norm(x, None, None, weight, bias, training=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
    pull = torch.randn_like(found)
    (wanted,) = torch.autograd.grad((expected * pull).sum(), x, retain_graph=True)
    (got,) = torch.autograd.grad((found * pull).sum(), x)
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-3)


class Stranger:
    """One of two processes, of which the other runs a norm with other weights."""

    rank, size = 0, 2

    def total(self, tensor):
        if tensor.numel() == 5 + 3:  # sums by channel, images, processes, sum of weights
            return tensor * 2 + torch.tensor([0.0] * 7 + [0.01])
        return tensor * 2


def test_norms_of_different_layers_are_not_mixed():
    """As where layers are left out at random."""
    x, weight, bias = torch.randn(8, 5), torch.ones(5), torch.zeros(5)
    with (
        pytest.raises(RunError, match="Batch norms must be the same ones in all processes"),
        synchronised(Stranger(), counts=True),
    ):
        F.batch_norm(x, None, None, weight, bias, training=True)


@pytest.mark.parametrize(
    ("there", "kind", "message"),
    [
        ({"CPU": 1.0}, "CPU", "than Ray has CPUs, one each: got 2, and there are 1"),
        ({"CPU": 4.0, "GPU": 1.0}, "GPU", "has GPUs, .*device=cpu"),
        ({}, "CPU", "there are 0"),
    ],
)
def test_processes_that_would_wait_forever(there, kind, message):
    with pytest.raises(RunError, match=message):
        _require_room(2, there, kind)
    _require_room(2, {"CPU": 2.0}, "CPU")


class Broken(Subnets):
    def at(self, space, seed, step, progress):
        raise RunError("This step must not be made.")


def test_an_error_that_says_nothing_is_told_by_its_name(tmp_path):
    assert "more than 3 times, but did: TimeoutError() What" in str(_problem(tmp_path, TimeoutError(), 3))


def test_an_error_is_told_once(ray, task, tmp_path):
    recipe = replace(RECIPE, workers=2, subnets=Broken())
    with pytest.raises(RunError, match=r"^This step must not be made\.$"):
        train_parallel(made_up_supernet(task), task, recipe, tmp_path, by_value=HERE)
    assert not (tmp_path / "error.json").exists()
