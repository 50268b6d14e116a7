"""The baseline of elastic layers computes what the supernet computes."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from experiments.benchmarks import elastic
from nas.supernet import Supernet
from search_spaces import hierarchical


def test_elastic_layers_give_the_outputs_and_gradients_of_the_supernet():
    space = elastic.space(widths=(64, 96), depths=(1, 2))
    supernet = Supernet(hierarchical.build, space)
    layers = elastic.with_weights(supernet)
    rng = np.random.default_rng(0)
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([1, 5, 7])
    for architecture in [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(4))]:
        for parameter in [*supernet.parameters(), *layers.parameters()]:
            parameter.grad = None
        ours, theirs = supernet(architecture, images, train=True), layers(images, architecture)
        torch.testing.assert_close(ours, theirs)
        for answer in (ours, theirs):
            F.cross_entropy(answer, labels).backward()
        reached = 0
        for name, parameter in layers.named_parameters():
            mine = supernet.bank[name].grad
            if parameter.grad is None:
                assert mine is None, name
                continue
            torch.testing.assert_close(mine.reshape(parameter.shape), parameter.grad, rtol=1e-4, atol=1e-6)
            reached += 1
        assert reached > 20
