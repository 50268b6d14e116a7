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
    """One subnet a step: of the whole space, with one mixer in all blocks, or with one channel mixer in all
    blocks, in turn. Drawn block by block, hardly any would keep to one."""

    def at(self, space: Space, seed: int, step: int, progress: float) -> list[Any]:
        spaces = ((space,), one_mixer(), one_ffn())[step % 3]
        return [spaces[step // 3 % len(spaces)].sample(np.random.default_rng((seed, step)))]


def experiment() -> Experiment:
    task = digits()
    everything = space(task, MIXERS, FFNS)
    return Experiment(
        name="every_mixer",
        task=task,
        space=everything,
        build=hierarchical.build,
        features=costs.features(everything, SIDE),
        training=Recipe(epochs=500, subnets=OneAtATime(), threads=1),
    )
