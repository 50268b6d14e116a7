"""What a candidate is worth, where batch norms need statistics of their own."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nas.evaluation import Evaluator, accuracy, answering, statistics, subnet_accuracy
from nas.space import Space, oneof
from nas.supernet import Supernet
from nas.tasks import Tally, from_arrays
from nas.trial import Candidate


@dataclass(frozen=True)
class Net:
    width: int


def build(architecture: Net) -> nn.Module:
    """A batch norm right before the answer: without statistics, one class wins everywhere."""
    width = architecture.width
    layers = nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.BatchNorm1d(width), nn.Linear(width, 3)
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    images = rng.normal(size=(300, 4, 4)) + labels[:, None, None]
    return from_arrays(images.astype(np.float32), labels, batch_size=20)


@pytest.fixture(scope="module")
def supernet():
    return Supernet(build, Space(Net(oneof(8, 16))))


def test_accuracy_is_that_of_the_model_that_is_exported(task, supernet):
    found = {}
    for width in (8, 16):
        module = supernet.extract(Net(width), buffers=statistics(supernet, Net(width), task))
        found[width] = subnet_accuracy(supernet, Net(width), task, "search")
        assert found[width].mean == accuracy(module, task, "search").mean
    uncalibrated = accuracy(supernet.extract(Net(16)), task, "search")
    assert uncalibrated.mean != found[16].mean


def test_statistics_are_those_of_train(task, supernet):
    first = list(task.batches("train"))[:8]
    buffers = statistics(supernet, Net(8), task)
    module = supernet.extract(Net(8))[:3]
    expected = torch.stack([module(*batch.inputs).mean(0) for batch in first]).mean(0)
    torch.testing.assert_close(buffers["3.running_mean"], expected)


def test_the_same_wherever_it_is_asked_for(task, supernet):
    once, again = (statistics(supernet, Net(8), task) for _ in range(2))
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)


class Elsewhere:
    """A supernet on another device, whose answers come from there."""

    device = torch.device("meta")

    def __init__(self, supernet: Supernet) -> None:
        self.supernet, self.met = supernet, []

    def calibrate(self, architecture, batches):
        self.met += [x.device.type for inputs in batches for x in inputs]
        return {}

    def __call__(self, architecture, *inputs, buffers):
        self.met += [x.device.type for x in inputs]
        return Answer(self.supernet(architecture, torch.zeros(inputs[0].shape)))


class Answer:
    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def to(self, device: str) -> torch.Tensor:
        assert device == "cpu"
        return self.values


def test_batches_go_where_the_bank_is_and_answers_come_back(task, supernet):
    """`judge` of a training on a GPU asks while the weights are there."""
    there = Elsewhere(supernet)
    answers = [answering(there, Net(8), task)(*batch.inputs) for batch in task.batches("search")]
    assert set(there.met) == {"meta"}
    assert len(there.met) == len(answers) * 9  # 8 of calibration for each
    assert {a.device.type for a in answers} == {"cpu"}
    assert subnet_accuracy(there, Net(8), task, "search").n == len(task.splits["search"])


@pytest.mark.parametrize(("n", "known"), [(1, False), (2, True)])
def test_one_value_for_a_split_has_no_error(n, known, task, supernet, monkeypatch):
    """Which the log takes; it does not take what is no number."""
    monkeypatch.setattr("nas.evaluation.subnet_accuracy", lambda *_: Tally(50.0 * n, 2600.0 * n, n))
    latency = type("Latency", (), {"__call__": lambda *_: [1.0], "objective": SimpleNamespace(name="ms")})()
    found = Evaluator(supernet, task, latency, ())(Candidate(Net(8)), {})
    assert (found.std_error is not None) == known
