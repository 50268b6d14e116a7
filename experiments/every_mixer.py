"""One supernet over all mixers and channel mixers at once, on scikit-learn's digits.

`nas train every_mixer`; what its subnets are worth: `python -m experiments.benchmarks.every_mixer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from nas.experiment import Experiment
from nas.layers import ChannelMixer, Mixer
from nas.layers.catalogue import members
from nas.space import Space
from nas.tasks import digits
from nas.training import Recipe
from search_spaces import costs, hierarchical

MIXERS = members(Mixer)
FFNS = members(ChannelMixer)
SIDE = 8


def space(task: Any, mixers: Sequence[type[Mixer]], ffns: Sequence[type[ChannelMixer]]) -> Space:
    """Two stages of 8 × 8 and 4 × 4 positions, with these mixers and channel mixers alone."""
    return hierarchical.space(
        task,
        widths=((32, 48), (48, 64)),
        depths=(1, 2),
        mixers=[hierarchical.with_holes(mixer) for mixer in mixers],
        ffns=[hierarchical.with_holes(ffn) for ffn in ffns],
        bits=(32,),
    )


@lru_cache
def alone() -> tuple[Space, ...]:
    """The spaces with one mixer and all channel mixers, and those with one channel mixer and all mixers."""
    task = digits()
    return tuple(space(task, [m], FFNS) for m in MIXERS) + tuple(space(task, MIXERS, [f]) for f in FFNS)


@dataclass(frozen=True)
class OneAtATime:
    """The largest and the smallest subnet, `random` of the whole space, and `alone` that keep to one mixer
    or to one channel mixer in all blocks: drawn block by block, hardly any would."""

    random: int = 3
    alone: int = 4

    def at(self, space: Space, seed: int, step: int) -> list[Any]:
        rng = np.random.default_rng((seed, step))
        spaces = alone()
        chosen = [spaces[(step * self.alone + i) % len(spaces)] for i in range(self.alone)]
        drawn = [s.sample(rng) for s in [space] * self.random + chosen]
        return [space.largest(), space.smallest(), *drawn]


def experiment() -> Experiment:
    task = digits()
    everything = space(task, MIXERS, FFNS)
    return Experiment(
        name="every_mixer",
        task=task,
        space=everything,
        build=hierarchical.build,
        features=costs.features(everything, SIDE),
        training=Recipe(epochs=80, subnets=OneAtATime()),
    )
