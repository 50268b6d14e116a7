"""CIFAR-10 with 10,000 training images and subnets of up to 4 million multiply-accumulates.

`nas run cifar10_small --set data=FOLDER`, where FOLDER holds the hub's `train….parquet` and `test….parquet`,
or a folder per class in `train/` and `test/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nas.errors import DataError
from nas.experiment import Experiment
from nas.layers import Global, Mixer, Window
from nas.layers.mixers.depthwise import DepthwiseConv
from nas.layers.mixers.linear import LinearAttention
from nas.layers.mixers.pooling import Pooling
from nas.space import Space, oneof
from nas.tasks import ImageClassification, RandomCropFlip, from_path
from nas.training import Recipe
from search_spaces import costs, hierarchical

SHARES = {"train": 0.8, "search": 0.1, "select": 0.1, "test": 0.2}  # 40,000 5,000 5,000, test: a file
TRAIN_IMAGES = 10_000
LEARNING_RATE = 0.012  # the best of those that experiments/benchmarks/learning_rates.py tried


def mixers(heads: tuple[int, ...]) -> tuple[Mixer, ...]:
    """Five, from cheap to dear."""
    attention: dict[str, Any] = {"heads": oneof(*heads), "head_dim": 8}
    return (
        Pooling(3),
        DepthwiseConv(oneof(3, 5)),
        LinearAttention(**attention),
        Window(**attention, size=oneof(2, 4)),
        Global(**attention),
    )


MIXERS = mixers(heads=(1, 2, 4))


@dataclass(frozen=True)
class Images:
    """What a space needs to know of the task."""

    classes: int = 10
    image_shape: tuple[int, int, int] = (3, 32, 32)


IMAGES = Images()


def cifar10(data: str | None) -> ImageClassification:
    """The task; *train* is cut to `TRAIN_IMAGES`."""
    return images(data).fewer(train=TRAIN_IMAGES)


def images(data: str | None) -> ImageClassification:
    """All images.

    Raises:
        DataError: no `data`.
    """
    if data is None:
        raise DataError(
            "`data` must say where CIFAR-10 is: --set data=FOLDER, with train….parquet and test….parquet as "
            "on the hub, or train/CLASS/… and test/CLASS/…"
        )
    return from_path(data, shares=SHARES, augment=RandomCropFlip(), batch_size=128)


def space(task: ImageClassification | Images, mixers: Sequence[Mixer] = MIXERS) -> Space:
    """Two stages of 8 × 8 and 4 × 4 positions, 0.2 to 4 million multiply-accumulates."""
    return hierarchical.space(
        task,
        widths=((16, 24, 32), (32, 48, 64)),
        depths=(1, 3),
        mixers=mixers,
        ratios=(0.5, 1, 2),
        bits=(32,),
        patch=4,
    )


def experiment(data: str | None = None) -> Experiment:
    task = cifar10(data)
    choices = space(task)
    return Experiment(
        name="cifar10_small",
        task=task,
        space=choices,
        build=hierarchical.build,
        features=costs.features(choices, task.image_shape[-1]),
        training=Recipe(epochs=130, learning_rate=LEARNING_RATE),
    )
