"""CIFAR-10 with all of its 40,000 training images, and subnets of up to 18 million multiply-accumulates.

`nas run cifar10 --set data=FOLDER`, where FOLDER is what `experiments/cifar10_small.py` takes: about an hour
and a half on two cores.
"""

from __future__ import annotations

from experiments.cifar10_small import images, mixers
from nas.experiment import Experiment
from nas.training import Recipe
from search_spaces import costs, hierarchical

LEARNING_RATE = 0.008
"""Between 0.006 and 0.012: after 6 epochs (`nas train cifar10 --set training.epochs=6 --set
training.learning_rate=…`) the largest and the smallest subnet had 54.7 and 48.8 % at the one, 54.2 and 49.5
at the other, 51.8 and 46.8 at 0.003."""


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
        training=Recipe(epochs=150, learning_rate=LEARNING_RATE),
    )
