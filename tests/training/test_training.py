"""Training: what a step computes, and that it can be interrupted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nas.errors import RunError
from nas.supernet import Supernet
from nas.tasks import from_arrays
from nas.training import Recipe, Sandwich, distillation, load_tensors, save_tensors, train
from search_spaces import hierarchical

RECIPE = Recipe(epochs=4, checkpoint_seconds=0, threads=1, learning_rate=1e-3)


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    images = rng.random((120, 8, 8)) + labels[:, None, None] * np.eye(8)
    return from_arrays(images, labels, batch_size=32)


@pytest.fixture
def supernet(task):
    space = hierarchical.space(task, widths=((8, 16), (16, 24)), depths=(1, 2))
    return Supernet(hierarchical.build, space)


def copy_of(supernet: Supernet) -> Supernet:
    return Supernet(hierarchical.build, supernet.space)


class Killed(Exception):
    pass


def killer(after: int):
    def on_epoch(epoch):
        if epoch.epoch == after:
            raise Killed

    return on_epoch


def test_it_learns_and_writes_what_it_did(task, supernet, tmp_path):
    epochs = []
    train(supernet, task, replace(RECIPE, epochs=6), tmp_path, on_epoch=epochs.append)
    assert epochs[-1].loss < epochs[0].loss
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 6
    saved, _ = load_tensors(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[n], t) for n, t in supernet.state().items())


class LargestAlone:
    def at(self, space, seed, step):
        return [space.largest()]


def test_a_step_may_train_one_subnet(task, supernet, tmp_path):
    epochs = []
    train(supernet, task, replace(RECIPE, subnets=LargestAlone()), tmp_path, on_epoch=epochs.append)
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].largest_accuracy == epochs[-1].smallest_accuracy


@pytest.mark.parametrize("after", [1, 3])
def test_resumed_weights_equal_uninterrupted_ones(task, supernet, tmp_path, after):
    whole = train(supernet, task, RECIPE, tmp_path / "whole").state()
    with pytest.raises(Killed):
        train(copy_of(supernet), task, RECIPE, tmp_path / "cut", on_epoch=killer(after))
    resumed = train(copy_of(supernet), task, RECIPE, tmp_path / "cut").state()
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    histories = [(tmp_path / d / "history.jsonl").read_text().count("\n") for d in ("whole", "cut")]
    assert histories == [4, 4]


def test_work_after_the_last_checkpoint_is_done_again(task, supernet, tmp_path):
    rare = replace(RECIPE, checkpoint_seconds=1e9)
    whole = train(supernet, task, rare, tmp_path / "whole").state()
    with pytest.raises(Killed):
        train(copy_of(supernet), task, rare, tmp_path / "cut", on_epoch=killer(2))
    resumed = train(copy_of(supernet), task, rare, tmp_path / "cut").state()
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    assert (tmp_path / "cut" / "history.jsonl").read_text().count("\n") == 4


def test_seed_decides(task, supernet, tmp_path):
    a = train(copy_of(supernet), task, RECIPE, tmp_path / "a", seed=1).state()
    b = train(copy_of(supernet), task, RECIPE, tmp_path / "b", seed=1).state()
    c = train(copy_of(supernet), task, RECIPE, tmp_path / "c", seed=2).state()
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not all(torch.equal(a[n], c[n]) for n in a)


def test_the_gradient_of_a_step_is_the_mean_over_its_subnets(task, supernet, tmp_path):
    """Recomputed without the loop: label loss of the largest, distillation of the others."""
    recipe = replace(RECIPE, epochs=1, warmup=1.0, learning_rate=0.0, clip=1e9)
    single = replace(task, splits=dict(task.splits) | {"train": task.splits["train"][:16]})
    train(supernet, single, recipe, tmp_path)
    found = {n: p.grad.clone() for n, p in supernet.bank.items() if p.grad is not None}
    for parameter in supernet.parameters():
        parameter.grad = None
    (batch,) = single.batches("train", seed=0, epoch=0)
    largest, *others = recipe.subnets.at(supernet.space, 0, 0)
    teacher = supernet(largest, *batch.inputs, train=True)
    losses = [single.loss(teacher, batch)]
    losses += [distillation(supernet(a, *batch.inputs, train=True), teacher.detach()) for a in others]
    torch.stack(losses).mean().backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, supernet.bank[name].grad, rtol=1e-4, atol=1e-6)


def test_sandwich_draws_by_seed_and_step(supernet):
    space = supernet.space
    rule = Sandwich(random=2)
    assert rule.at(space, 0, 5) == rule.at(space, 0, 5)
    assert rule.at(space, 0, 5)[2:] != rule.at(space, 0, 6)[2:]
    assert rule.at(space, 0, 5)[:2] == [space.largest(), space.smallest()]
    bits = {
        b.mixer.bits.weight for i in range(20) for a in rule.at(space, 0, i)[2:] for b in a.stages[0].blocks
    }
    assert bits == {4, 8, 32}


def test_only_matrices_decay(task, supernet, tmp_path):
    """With gradients too small to matter, decay is all that moves weights."""
    names = supernet.matrices()
    assert "stages.1.entry.merge.norm.weight" not in names  # stored with two axes, yet a norm
    assert "stages.0.blocks.0.mixer.relative_bias" not in names
    assert {"stem.conv.weight", "stages.0.blocks.0.ffn.up.weight"} <= names


def test_learning_rate_warms_up_and_falls():
    recipe = Recipe(learning_rate=1.0, warmup=0.1)
    assert recipe.rate(0) == 0
    assert recipe.rate(0.05) == pytest.approx(0.5)
    assert recipe.rate(0.1) == pytest.approx(1)
    assert recipe.rate(1) == pytest.approx(0)


def test_a_loss_that_is_not_finite_stops_the_run(task, supernet, tmp_path):
    broken = replace(task, images=np.full_like(task.images, np.inf))
    with pytest.raises(RunError, match="must stay finite, but is nan at step 0"):
        train(supernet, broken, RECIPE, tmp_path)


class TestCheckpoints:
    def test_a_damaged_one_is_refused(self, task, supernet, tmp_path):
        with pytest.raises(Killed):
            train(copy_of(supernet), task, RECIPE, tmp_path, on_epoch=killer(2))
        path = tmp_path / "checkpoint.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(RunError, match="must be a whole safetensors file"):
            train(supernet, task, RECIPE, tmp_path)

    def test_one_of_another_space_is_refused(self, task, supernet, tmp_path):
        with pytest.raises(Killed):
            train(supernet, task, RECIPE, tmp_path, on_epoch=killer(1))
        other = Supernet(hierarchical.build, hierarchical.space(task))
        with pytest.raises(RunError, match="another space wrote it"):
            train(other, task, RECIPE, tmp_path)

    def test_writing_is_atomic(self, tmp_path, monkeypatch):
        path = tmp_path / "x.safetensors"
        save_tensors(path, {"a": torch.zeros(2)}, {"step": "1"})
        monkeypatch.setattr("nas.training.checkpoint.os.replace", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            save_tensors(path, {"a": torch.ones(2)}, {"step": "2"})
        tensors, metadata = load_tensors(path)
        assert (tensors["a"].tolist(), metadata) == ([0, 0], {"step": "1"})
