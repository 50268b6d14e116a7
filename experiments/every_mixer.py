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
from nas.layers import ChannelMixer, Mixer, OverlapStem
from nas.layers.catalogue import members
from nas.space import Space
from nas.tasks import digits
from nas.training import Recipe, Subnets
from search_spaces import costs, hierarchical

MIXERS = members(Mixer)
FFNS = members(ChannelMixer)
SIDE = 8


def space(
    task: Any,
    mixers: Sequence[type[Mixer]],
    ffns: Sequence[type[ChannelMixer]],
    depths: tuple[int, int] = (1, 2),
) -> Space:
    """Two stages of 8 × 8 and 4 × 4 positions, with these mixers and channel mixers alone.

    Behind a linear stem, blocks of pooling without a channel mixer would be all but linear.
    """
    return hierarchical.space(
        task,
        stem=OverlapStem(1, activation="gelu"),
        widths=((32, 48), (48, 64)),
        depths=depths,
        mixers=[hierarchical.with_holes(mixer) for mixer in mixers],
        ffns=[hierarchical.with_holes(ffn) for ffn in ffns],
        bits=(32,),
    )


@lru_cache
def one_mixer() -> tuple[Space, ...]:
    """The spaces with one mixer in all blocks, and all channel mixers."""
    return tuple(space(digits(), [mixer], FFNS) for mixer in MIXERS)


@lru_cache
def one_ffn() -> tuple[Space, ...]:
    """The spaces with one channel mixer in all blocks, and all mixers."""
    return tuple(space(digits(), MIXERS, [ffn]) for ffn in FFNS)


@dataclass(frozen=True)
class OneAtATime(Subnets):
    """The largest and the smallest subnet, `random` of the whole space, and such as keep to one mixer or to
    one channel mixer in all blocks, in turn: drawn block by block, hardly any would."""

    teaches = True

    random: int = 1
    mixers: int = 3
    ffns: int = 2

    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        rng = np.random.default_rng((seed, step))
        spaces = [space] * self.random + _turn(one_mixer(), self.mixers, step)
        spaces += _turn(one_ffn(), self.ffns, step)
        return [space.largest(), space.smallest(), *(s.sample(rng) for s in spaces)]


def _turn(spaces: Sequence[Space], n: int, step: int) -> list[Space]:
    return [spaces[(step * n + i) % len(spaces)] for i in range(n)]


def experiment() -> Experiment:
    task = digits()
    everything = space(task, MIXERS, FFNS)
    return Experiment(
        name="every_mixer",
        task=task,
        space=everything,
        build=hierarchical.build,
        features=costs.features(everything, SIDE),
        training=Recipe(epochs=90, subnets=OneAtATime(), threads=1),
    )
