"""CIFAR-10 with all of its 40,000 training images, and subnets of up to 18 million multiply-accumulates.

`nas run cifar10 --set data=FOLDER`, where FOLDER is what `experiments/cifar10_small.py` takes: about an hour
and a half on two cores.
"""

from __future__ import annotations

from experiments.cifar10_small import images, mixers
from nas.experiment import Experiment
from nas.training import Recipe
from search_spaces import costs, hierarchical


def experiment(data: str | None = None) -> Experiment:
    """Two stages of 8 × 8 and 4 × 4 positions, 0.6 to 18 million multiply-accumulates."""
    task = images(data)
    space = hierarchical.space(
        task,
        widths=((32, 48, 64), (64, 96, 128)),
        depths=(1, 4),
        mixers=mixers(heads=(2, 4, 8)),
        ratios=(0.5, 1, 2),
        bits=(32,),
        patch=4,
    )
    return Experiment(
        name="cifar10",
        task=task,
        space=space,
        build=hierarchical.build,
        features=costs.features(space, task.image_shape[-1]),
        training=Recipe(epochs=150),
    )
