"""Whole networks at resolutions that they were not built for: they run, or say why not."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hierarchical.spaces import every_mixer

from nas.errors import SpaceError
from nas.layers import Block, Global, Mlp, OverlapStem, Window
from nas.layers.mixers.depthwise import DepthwiseConv
from nas.layers.mixers.pooling import Pooling
from nas.space import oneof
from nas.supernet import Supernet
from search_spaces import hierarchical
from search_spaces.hierarchical import HierarchicalTransformer, Stage, build

SMALL = ((16, 16), (24, 24), (32, 16), (8, 48), (20, 28))
LARGE = ((32, 32), (48, 48), (64, 32), (16, 80), (40, 32))


class Cifar:
    classes, image_shape = 10, (3, 32, 32)


def cifar_size():
    """Stride 4 and two halvings: sides must be multiples of 16, or more where the last stage has windows."""
    mixers = Pooling(3), DepthwiseConv(oneof(3, 5)), Window(2, oneof(1, 2)), Global(oneof(1, 2))
    return hierarchical.space(Cifar, widths=((8, 16), (16, 32), (32,)), mixers=mixers, patch=4)


def misfits(architecture, height: int, width: int) -> list[str]:
    """What the parts say of an image of that size, from its stem to the last mixer."""
    found = [architecture.stem.misfit(height, width)]
    h, w = (architecture.stem.after(side) for side in (height, width))
    for stage in architecture.stages:
        if stage.down is not None:
            found.append(stage.down.misfit(h, w))
            h, w = stage.down.after(h), stage.down.after(w)
        found += [block.mixer.misfit(h, w) for block in stage.blocks]
    return [problem for problem in found if problem]


@pytest.mark.parametrize(
    ("space", "n", "sides"),
    [(every_mixer, 80, SMALL), (cifar_size, 15, LARGE)],
    ids=["every mixer", "CIFAR"],
)
def test_unseen_sides_run_or_are_refused_by_name(space, n, sides):
    stated, rng = space(), np.random.default_rng(0)
    ran: set[tuple[int, int]] = set()
    refused = 0
    for _ in range(n):
        architecture = stated.sample(rng)
        network = build(architecture).eval()
        for height, width in sides:
            problems = misfits(architecture, height, width)
            run = partial(network, torch.zeros(2, 3, height, width))
            with torch.no_grad():
                if not problems:
                    assert run().shape == (2, architecture.classes)
                    assert run().isfinite().all()
                    ran.add((height, width))
                    continue
                with pytest.raises(SpaceError) as caught:
                    run()
            assert problems[0] in str(caught.value)
            refused += 1
    assert refused
    assert len(ran) >= 4


def test_supernet_and_extracted_agree_at_an_unseen_side():
    stated = cifar_size()
    supernet, architecture = Supernet(build, stated), stated.sample(np.random.default_rng(0))
    x = torch.randn(2, 3, 16, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = supernet(architecture, x) - supernet.extract(architecture)(x)
    assert difference.abs().max() == 0


def test_the_refusal_names_part_size_and_remedy():
    network = build(
        HierarchicalTransformer(OverlapStem(2), (Stage(16, (Block(Window(1, 4), Mlp(1)),)),), 10, 3)
    )
    message = r"A window must divide the feature map: got size=4 on 10×8. Use one of 1, 2."
    with pytest.raises(SpaceError, match=message):
        network(torch.zeros(1, 3, 20, 16))
