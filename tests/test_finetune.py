"""Of a training on, the best weights are kept, also over an interruption."""

from __future__ import annotations

import sys

import pytest
import torch
from training.small import RECIPE, made_up_supernet, made_up_task

from nas.experiment import Experiment
from nas.phases.finetune import FINE_TUNED, Finetuning, Piece, Shared, _train_on
from nas.tasks import Tally
from nas.training import load_tensors
from search_spaces import hierarchical


class Stop(Exception):
    pass


def tally(accuracy: float) -> Tally:
    return Tally(accuracy * 10, accuracy**2 * 10, 10)


@pytest.mark.parametrize("stop", [None, 3])
def test_the_best_weights_are_kept(stop, tmp_path, monkeypatch):
    task = made_up_task()
    supernet = made_up_supernet(task)
    architecture = supernet.space.smallest()
    experiment = Experiment("a", task, supernet.space, hierarchical.build, training=RECIPE)
    what = Finetuning(epochs=4, external=0.0)
    shared = Shared(experiment, supernet, None, what, tmp_path)
    piece = Piece("a", architecture, FINE_TUNED)
    accuracies = {1: 50.0, 2: 70.0, 3: 60.0, 4: 65.0}
    seen, reported = {}, []

    def judged(alone, _architecture, _task, _split):
        epoch = len(seen) + 1
        seen[epoch] = {n: t.clone() for n, t in alone.state().items()}
        return tally(accuracies[epoch])

    def report(epoch, score, core_seconds):
        reported.append((epoch, score))
        if epoch == stop and len(reported) == stop:
            raise Stop

    monkeypatch.setattr(sys.modules["nas.phases.finetune"], "subnet_accuracy", judged)
    if stop:
        with pytest.raises(Stop):
            _train_on(shared, piece, report)
        del seen[stop]  # is judged again
    _train_on(shared, piece, report)
    tensors, metadata = load_tensors(tmp_path / "a-fine-tuned.safetensors")
    assert float(metadata["score"]) == 70.0
    assert all(torch.equal(tensors[n], t) for n, t in seen[2].items())
    assert reported[-1] == (4, 70.0)
    assert not (tmp_path / ".a-fine-tuned").exists()
