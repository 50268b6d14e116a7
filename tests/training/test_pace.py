"""What steps take is measured on weights that stay as they are."""

from __future__ import annotations

from dataclasses import replace

import torch
from training.small import RECIPE, made_up_supernet, made_up_task

from nas.training import Sandwich, SinglePath, seconds_of_steps


def test_weights_and_random_numbers_stay_as_they_are(tmp_path):
    task = made_up_task()
    supernet = made_up_supernet(task)
    before = {name: tensor.clone() for name, tensor in supernet.state().items()}
    numbers = torch.get_rng_state()
    recipes = [replace(RECIPE, subnets=rule, weight_decay=0.1) for rule in (SinglePath(), Sandwich())]
    single, four = seconds_of_steps(supernet, task, recipes)
    assert 0 < single < four
    assert torch.equal(numbers, torch.get_rng_state())
    for name, tensor in supernet.state().items():
        assert torch.equal(tensor, before[name])
