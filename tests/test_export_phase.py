"""What files are held against, and in which batches."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from nas.errors import ExportError
from nas.phases import export
from nas.tasks import Batch, Metric


@dataclass(frozen=True)
class Given:
    """A task of numbers that come in batches of these sizes."""

    sizes: tuple[int, ...]
    widths: tuple[int, ...] = (1,)
    metric: Metric = Metric("error", "", "minimize")

    def batches(self, split):
        assert split == "select"
        numbers = iter(range(sum(self.sizes)))
        for i, size in enumerate(self.sizes):
            x = torch.tensor([[float(next(numbers))] for _ in range(size)])
            yield Batch((x.repeat(1, self.widths[i % len(self.widths)]),), x[:, 0] + 0.5)


def evidence(task: Given, size: int) -> export.Evidence:
    return export._evidence(lambda _, x, buffers: 2 * x, None, {}, task, size)


@pytest.mark.parametrize(
    ("sizes", "size", "wanted"),
    [
        ((4, 4, 2), 8, [8]),
        ((4, 4, 2), 3, [3, 3, 3]),
        ((8, 8), 8, [8, 8]),
        ((3,), 8, [8]),
        ((3, 3), 1, [1] * 6),
    ],
    ids=["joined", "over the ends of batches", "as they come", "too few", "one by one"],
)
def test_batches_are_those_of_the_device(sizes, size, wanted):
    found = evidence(Given(sizes), size)
    assert [len(b.inputs[0]) for b in found.batches] == wanted
    numbers = torch.cat([b.inputs[0] for b in found.batches])[:, 0]
    assert numbers.tolist() == [i % sum(sizes) for i in range(len(numbers))]
    for batch, answer in zip(found.batches, found.answers, strict=True):
        assert torch.equal(answer, 2 * batch.inputs[0])
        assert torch.equal(batch.targets, batch.inputs[0][:, 0] + 0.5)


def test_inputs_of_one_shape_come_together():
    found = evidence(Given((4, 4, 4), (2, 3)), 8)
    assert [tuple(b.inputs[0].shape) for b in found.batches] == [(8, 2)]
    assert found.batches[0].inputs[0][4:, 0].tolist() == [8, 9, 10, 11]


def test_no_more_inputs_than_it_takes(monkeypatch):
    monkeypatch.setattr(export, "MOST_INPUTS", 10)
    assert sum(len(b.inputs[0]) for b in evidence(Given((4,) * 9), 4).batches) == 12
    (batch,) = evidence(Given((4,) * 9), 16).batches
    assert batch.inputs[0][:, 0].tolist() == list(range(16))


def test_conditions_on_figures_of_two_devices_are_told():
    """Which no point has together."""
    front = [
        {
            "device": device,
            "front": True,
            "objectives": {"accuracy": {"measured": 90.0}, f"latency_ms.{device}": {"measured": 3.0}},
        }
        for device in "xy"
    ]
    assert export.entries_where(front, ["latency_ms.x<=5"]) == front[:1]
    for where, goal in (
        (["latency_ms.x<=5", "latency_ms.y<=5"], None),
        (["latency_ms.x<=5"], "latency_ms.y"),
    ):
        with pytest.raises(ExportError, match="must be figures of one device, but no point has all of"):
            export.entries_where(front, where, goal=goal)
