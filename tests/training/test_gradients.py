"""Gradients of slices, and an optimizer that touches nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from training.small import (
    RECIPE,
    assert_gradients,
    made_up_supernet,
    made_up_task,
    one_batch,
    step_gradients,
)

from nas.training import Gradients, Nested, OneBatch, Sandwich, SinglePath, SlicedAdamW, soft_loss
from nas.training.optimizer import Group

SHAPE = (5, 7)


def box(rows: tuple[int, int], columns: tuple[int, int]):
    return slice(*rows), slice(*columns)


BOXES = [box(r, c) for r, c in product([(0, 2), (0, 5), (1, 4)], [(0, 3), (2, 6), (0, 7)])]


def whole(boxes_and_values) -> tuple[torch.Tensor, torch.Tensor]:
    total, touched = torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.bool)
    for where, value in boxes_and_values:
        total[where] += value
        touched[where] = True
    return total, touched


def added(pairs) -> Gradients:
    gradients = Gradients()
    for where, value in pairs:
        gradients.add("w", where, value.clone())
    return gradients


def pairs(seed: int, n: int):
    rng = torch.Generator().manual_seed(seed)
    chosen = [BOXES[int(i)] for i in torch.randint(len(BOXES), (n,), generator=rng)]
    return [(b, torch.randn([s.stop - s.start for s in b], generator=rng)) for b in chosen]


@pytest.mark.parametrize("seed", range(12))
def test_sums_over_boxes(seed):
    many, more = pairs(seed, 1 + seed % 4), pairs(seed + 100, 3)
    gradients = added(many)
    gradients.update(added(more))
    total, touched = whole(many + more)
    found, where = torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.bool)
    hull, trained = gradients.box("w"), gradients.trained("w")
    found[hull] = gradients.value("w")
    where[hull] = True if trained is None else trained
    torch.testing.assert_close(found, total)
    assert torch.equal(where, touched)
    torch.testing.assert_close(gradients.norm(), total.norm())


@pytest.mark.parametrize("seed", range(8))
def test_conflicts_are_judged_where_both_have_the_weight(seed):
    mine, others = pairs(seed, 1), pairs(seed + 50, 2)
    largest = added(mine)
    largest.without_conflict(added(others))
    (a, _), (b, _) = whole(mine), whole(others)
    inner = (a * b).sum()
    common = (whole(mine)[1]) & (whole(others)[1])
    expected = a - torch.where(common, min(inner, 0 * inner) / b.square().sum() * b, 0)
    found = torch.zeros(SHAPE)
    found[largest.box("w")] = largest.value("w")
    torch.testing.assert_close(found, expected)


class TestOptimizer:
    def test_it_is_adamw_where_all_is_trained(self):
        torch.manual_seed(0)
        bank = {"w": torch.randn(4, 3), "b": torch.randn(4)}
        plain = {n: torch.nn.Parameter(t.clone()) for n, t in bank.items()}
        reference = torch.optim.AdamW(
            [{"params": [plain["w"]], "weight_decay": 0.1}, {"params": [plain["b"]], "weight_decay": 0.0}]
        )
        ours = SlicedAdamW(bank, {"w": Group(decay=0.1), "b": Group()})
        for step in range(5):
            gradients = Gradients()
            for name, parameter in plain.items():
                parameter.grad = torch.randn(parameter.shape)
                everything = tuple(slice(0, n) for n in parameter.shape)
                gradients.add(name, everything, parameter.grad.clone())
            for group in reference.param_groups:
                group["lr"] = 0.01 * (step + 1)
            reference.step()
            ours.step(gradients, 0.01 * (step + 1))
        for name, tensor in bank.items():
            torch.testing.assert_close(tensor, plain[name].detach(), rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("where", [[BOXES[0]], [BOXES[0], BOXES[5]], [BOXES[1], BOXES[6]]])
    def test_what_is_not_trained_does_not_move(self, where):
        """Neither by momentum of earlier steps, nor by decay; what is trained moves as if it were alone."""
        torch.manual_seed(0)
        bank = {"w": torch.randn(SHAPE)}
        optimizer = SlicedAdamW(bank, {"w": Group(decay=0.1)})
        everything = [(box((0, 5), (0, 7)), torch.randn(SHAPE))]
        optimizer.step(added(everything), 0.01)
        before = {"w": bank["w"].clone()} | {
            m: optimizer.state["w"][m].clone() for m in ("exp_avg", "exp_avg_sq")
        }
        values = [(b, torch.randn([s.stop - s.start for s in b])) for b in where]
        _, touched = whole(values)
        optimizer.step(added(values), 0.01)
        for name, old in before.items():
            new = bank["w"] if name == "w" else optimizer.state["w"][name]
            assert torch.equal(new[~touched], old[~touched]), name
            assert (new[touched] != old[touched]).all(), name

    def test_a_small_subnet_leaves_the_rest_of_the_bank(self):
        task = made_up_task()
        supernet = made_up_supernet(task)
        optimizer = SlicedAdamW(supernet.bank, {n: Group(decay=0.5) for n in supernet.bank})
        images = torch.rand(4, 1, 8, 8)

        def step(architecture):
            slices = supernet.slices(supernet.boxes(architecture))
            supernet(architecture, images, train=True, slices=slices).square().sum().backward()
            gradients = Gradients()
            for name, where in supernet.boxes(architecture).items():
                gradients.add(name, where, slices[name].grad)
            optimizer.step(gradients, 0.01)

        step(supernet.space.largest())
        before = {n: t.clone() for n, t in supernet.state().items()}
        smallest = supernet.space.smallest()
        step(smallest)
        inside = {n: torch.zeros(t.shape, dtype=torch.bool) for n, t in before.items()}
        for name, where in supernet.boxes(smallest).items():
            inside[name][where] = True
        for name, old in before.items():
            new = supernet.bank[name].detach()
            assert torch.equal(new[~inside[name]], old[~inside[name]]), name
        assert any((supernet.bank[n] != old).any() for n, old in before.items())


def test_slices_gather_what_the_bank_would():
    task = made_up_task()
    supernet = made_up_supernet(task)
    images, teacher = torch.rand(4, 1, 8, 8), torch.randn(4, 3)
    architecture = supernet.space.smallest()
    soft_loss(supernet(architecture, images, train=True), teacher).backward()
    slices = supernet.slices(supernet.boxes(architecture))
    soft_loss(supernet(architecture, images, train=True, slices=slices), teacher).backward()
    for name, where in supernet.boxes(architecture).items():
        expected = supernet.bank[name].grad
        assert torch.equal(slices[name].grad, expected[where]), name
        assert slices[name].data_ptr() >= supernet.bank[name].data_ptr()
        assert slices[name].untyped_storage().data_ptr() == supernet.bank[name].untyped_storage().data_ptr()


@dataclass(frozen=True)
class Fellow:
    """One of several processes, whose parts the test adds up."""

    rank: int
    size: int

    def add_up(self, tensors):
        return None

    def either(self, flags):
        return flags


@pytest.mark.parametrize("images", [13, 1], ids=["uneven", "fewer images than processes"])
@pytest.mark.parametrize(
    "rule",
    [SinglePath(), Sandwich(random=1), OneBatch(3), Nested(rest="random")],
    ids=lambda r: type(r).__name__,
)
def test_processes_add_up_to_one(rule, images, tmp_path, monkeypatch):
    task = made_up_task()
    supernet, one = made_up_supernet(task), one_batch(task, images)
    recipe = replace(RECIPE, subnets=rule)
    whole = step_gradients(supernet, one, recipe, tmp_path / "one", monkeypatch)
    parts = [
        step_gradients(supernet, one, recipe, tmp_path / str(r), monkeypatch, group=Fellow(r, 3))
        for r in range(3)
    ]
    assert all(set(part) == set(whole) for part in parts)
    assert_gradients({name: sum(part[name] for part in parts) for name in whole}, whole)
