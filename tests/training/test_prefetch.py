"""Batches made ready elsewhere: all of them, in order, with their errors, and nothing that stays."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from training.small import RECIPE, Stop, made_up_supernet, made_up_task, stop_at_step

from nas.errors import RunError
from nas.tasks import Library, RandomCropFlip
from nas.training import SinglePath, feed, train
from nas.training.prefetch import CAN_FORK, OtherProcess, Prefetched, core_seconds


def test_all_of_them_in_order():
    assert list(Prefetched(iter(range(50)))) == list(range(50))
    empty = Prefetched(iter(()))
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(empty)


def test_errors_reach_the_one_who_asks():
    def source():
        yield 1
        raise ValueError("no more")

    items = Prefetched(source())
    assert next(items) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="no more"):
            next(items)


def test_whoever_leaves_is_not_waited_for():
    def source():
        yield 1
        raise SystemExit(3)

    items = Prefetched(source())
    assert next(items) == 1
    with pytest.raises(SystemExit):
        next(items)


def test_it_is_ahead_by_no_more_than_it_may():
    made = []

    def source():
        for i in range(100):
            made.append(i)
            yield i

    items = Prefetched(source(), ahead=3)
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # three wait, one in hand
    items.close()


def test_close_ends_the_thread():
    before = threading.active_count()
    items = Prefetched(iter(range(10**9)))
    next(items)
    items.close()
    assert threading.active_count() == before


@pytest.mark.skipif(not CAN_FORK, reason="needs Linux")
class TestOtherProcess:
    def test_epoch_after_epoch_in_order(self):
        def make(epoch, first):
            return ((epoch, i, os.getpid()) for i in range(first, 3))

        before = torch.get_rng_state()
        process = OtherProcess(make, epoch=4, first=1)
        found = [list(process.items()) for _ in range(3)]
        assert [[item[:2] for item in epoch] for epoch in found] == [
            [(4, 1), (4, 2)],
            [(5, 0), (5, 1), (5, 2)],
            [(6, 0), (6, 1), (6, 2)],
        ]
        assert process.epoch == 7
        assert {item[2] for epoch in found for item in epoch} == {multiprocessing.active_children()[0].pid}
        assert torch.equal(before, torch.get_rng_state())
        process.close()
        assert not multiprocessing.active_children()

    def test_in_the_middle_of_an_epoch_it_is_at_none(self):
        process = OtherProcess(lambda epoch, first: iter(range(first, 9)), epoch=0, first=0)
        next(process.items())
        assert process.epoch is None
        process.close()

    def test_errors_reach_the_one_who_asks(self):
        def make(epoch, first):
            yield 1
            raise RunError("no more")

        process = OtherProcess(make, epoch=0, first=0)
        items = process.items()
        assert next(items) == 1
        with pytest.raises(RunError, match=r"^no more$"):
            next(items)
        process.close()


class Noise(nn.Module):
    """Draws from PyTorch's own numbers."""

    def forward(self, images):
        return images + 0.1 * torch.randn(images.shape)


class Ours(RandomCropFlip):
    """Ours, and then noise of PyTorch's own numbers."""

    def __call__(self, images, generator):
        return Library(Noise())(super().__call__(images, generator), generator)


def inside(images, generator):
    return Library(Noise())(images.flip(-1), generator)


@pytest.mark.parametrize(
    "augment", [Library(Noise()), inside, Ours()], ids=["alone", "inside another", "after ours"]
)
def test_augmentations_of_a_library_change_no_step(augment, tmp_path, monkeypatch):
    """Made by another process they are those that this one would make, also where a training goes on."""
    task, working = made_up_task(augment=augment), list[int]()
    recipe = replace(RECIPE, subnets=SinglePath())

    def trained(name, **kw):
        return train(made_up_supernet(task), task, recipe, tmp_path / name, **kw).state()

    found = trained("whole", on_step=lambda _: working.append(len(multiprocessing.active_children())))
    assert set(working) == {1}
    assert not multiprocessing.active_children()
    with pytest.raises(Stop):
        trained("cut", on_step=stop_at_step(4))
    assert not multiprocessing.active_children()
    again = trained("cut")
    monkeypatch.setattr(feed, "CAN_FORK", False)
    here = trained("here")
    for name, tensor in here.items():
        assert torch.equal(tensor, found[name])
        assert torch.equal(tensor, again[name])


def test_core_seconds_count_what_others_made():
    def make(epoch, first):
        if epoch:
            return
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        yield epoch

    before, own = core_seconds(), time.process_time()
    process = OtherProcess(make, epoch=0, first=0)
    assert list(process.items()) == [0]
    process.close()
    assert core_seconds() - before >= 0.3 + time.process_time() - own - 0.05


def test_what_a_library_cannot_do_is_told_in_a_line(tmp_path):
    task = made_up_task(augment=Library(nn.Conv2d(5, 5, 3)))
    with pytest.raises(
        RunError, match="`batches` of ImageClassification must give those of train, but"
    ) as told:
        train(made_up_supernet(task), task, RECIPE, tmp_path)
    assert "RuntimeError" in str(told.value)
    assert "Traceback" not in str(told.value)
    assert not multiprocessing.active_children()
